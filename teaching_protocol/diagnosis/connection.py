"""Who is behind an address, told from the first bytes: nobody, a gRPC server with or without TLS, or something else.

Plain sockets under a limit, so that what gRPC calls UNAVAILABLE gets its reason. Knows no verb.
"""

from __future__ import annotations

import socket
import ssl
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from teaching_protocol.channel import split_address
from teaching_protocol.diagnosis.findings import CONNECTION, Finding
from teaching_protocol.errors import ConfigError

__all__ = ["Door", "Knock", "check_connection", "hello", "knock"]

Kind = Literal["grpc", "tls", "http1", "silent", "closed", "other", "refused", "unreachable", "unknown"]

# RFC 9113, 3.4: what a client of HTTP/2 says first; 6.5: an empty SETTINGS frame
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
_HEADER_BYTES, _SETTINGS, _TLS_ALERT = 9, 4, 0x15
_PATIENCE_S = 4.0

_SAID: dict[Kind, tuple[str, str]] = {
    "http1": (
        "an HTTP/1 server answers there, no gRPC server",
        "check the port: the teacher's metrics and status page have another one than its gRPC",
    ),
    "silent": (
        "somebody accepts the connection and never says anything",
        "see whether the process behind the port hangs, or is no gRPC server; a teacher answers at once",
    ),
    "closed": (
        "somebody accepts the connection and hangs up",
        "see whether a proxy stands before the teacher that takes no HTTP/2, or the port is another program's",
    ),
    "other": ("what answers there does not speak HTTP/2, as gRPC does", "check the port: another program has it"),
    "refused": ("nobody listens there", "start the teacher (teacher-server serve), or check host and port"),
    "unreachable": (
        "the host cannot be reached",
        "check the network between the two machines, firewalls and network policies",
    ),
    "unknown": ("the host's name is not known", "check its spelling, and the name server of this machine"),
}


@dataclass(frozen=True)
class Door:
    """An address and what TLS needs there.

    Attributes:
        address: `host:port`.
        uses_tls: whether the connection is to be encrypted.
        ca: PEM file of the CA to be trusted; None are the system's.
        cert, key: PEM files of one's own certificate.
        server_name: name the certificate must have; empty is the host.
    """

    address: str
    uses_tls: bool = False
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    server_name: str = ""

    def context(self, *, verified: bool) -> ssl.SSLContext:
        """TLS as gRPC's client does it; unverified only to see who is there.

        Raises:
            ConfigError: files that cannot be used.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.set_alpn_protocols(["h2"])
        try:
            if not verified:
                context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            elif self.ca is not None:
                context.load_verify_locations(self.ca)
            else:
                context.load_default_certs()
            if self.cert is not None:
                context.load_cert_chain(self.cert, self.key, password="")
        except (ssl.SSLError, OSError) as error:
            raise ConfigError(
                f"{', '.join(str(path) for path in (self.ca, self.cert, self.key) if path)}: expected PEM files, a key with its own "
                f"certificate ({error.strerror}); check --ca, --cert and --key"
            ) from error
        return context


@dataclass(frozen=True)
class Knock:
    """Who is there, after how many seconds a connection was open, and the certificate shown, if any."""

    kind: Kind
    open_s: float = 0.0
    certificate: bytes = b""


def check_connection(door: Door, limit_s: float) -> Finding:
    """Whether a gRPC server is behind the address, with TLS or without."""
    found = knock(door, min(limit_s, _PATIENCE_S))
    values = {"kind": found.kind, "connect_ms": round(1e3 * found.open_s, 3)}
    if found.kind not in ("grpc", "tls"):
        measured, advice = _SAID[found.kind]
        return Finding(CONNECTION, "fail", f"{door.address}: {measured}", advice, values)
    way = "with TLS" if found.kind == "tls" else "without TLS"
    measured = f"{door.address}: a gRPC server listens {way}, connected in {1e3 * found.open_s:.1f} ms"
    return Finding(CONNECTION, "ok", measured, "", values)


def knock(door: Door, limit_s: float) -> Knock:
    """Connects and looks at what the other side says first; waits no longer than the limit for each of its words."""
    began = time.monotonic()
    try:
        connection = socket.create_connection(split_address(door.address), limit_s)
    except ConnectionRefusedError:
        return Knock("refused")
    except socket.gaierror:
        return Knock("unknown")
    except OSError:  # no route, or no answer in time
        return Knock("unreachable")
    open_s = time.monotonic() - began
    with connection:
        kind = _plain(connection)
    if kind in ("tls", "closed") or (kind == "silent" and door.uses_tls):
        return _encrypted(door, limit_s, open_s)
    return Knock(kind, open_s)


def _plain(connection: socket.socket) -> Kind:
    try:
        connection.sendall(_PREFACE)
        return _kind(connection.recv(64))
    except TimeoutError:
        return "silent"
    except OSError:
        return "closed"


def _kind(said: bytes) -> Kind:
    if not said:
        return "closed"
    if said.startswith(b"HTTP/1") or said.lstrip().lower().startswith(b"<!doctype"):
        return "http1"
    if said[0] == _TLS_ALERT:
        return "tls"
    is_settings = len(said) >= _HEADER_BYTES and said[3] == _SETTINGS and said[5:9] == b"\x00\x00\x00\x00"
    return "grpc" if is_settings else "other"


def _encrypted(door: Door, limit_s: float, open_s: float) -> Knock:
    """Who is behind TLS, trusted or not."""
    try:
        with hello(door, limit_s, verified=False) as connection:
            return Knock("tls", open_s, connection.getpeercert(binary_form=True) or b"")
    except TimeoutError:
        return Knock("silent", open_s)
    except (ssl.SSLError, OSError) as error:
        # a server that asks for a certificate of ours is a TLS server all the same
        return Knock("tls" if "ALERT" in str(error).upper() else "closed", open_s)


def hello(door: Door, limit_s: float, *, verified: bool) -> ssl.SSLSocket:
    """A TLS connection after the first words of both sides; close it.

    Raises:
        ssl.SSLError, OSError: the handshake failed, or the server refused what this side showed.
        TimeoutError: it did not go on in time.
    """
    host, port = split_address(door.address)
    plain = socket.create_connection((host, port), limit_s)
    try:
        connection = door.context(verified=verified).wrap_socket(plain, server_hostname=door.server_name or host)
    except BaseException:
        plain.close()
        raise
    try:
        connection.sendall(_PREFACE)
        if not connection.recv(64):  # what a server thinks of our certificate comes after the handshake
            raise ssl.SSLError(1, "ALERT: the server hung up after the handshake")
    except BaseException:
        connection.close()
        raise
    return connection
