"""Who this student is and whom it trusts: CA, client certificate, token; keeps paths and no secret, opens the channel."""

from __future__ import annotations

import ipaddress
import os
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc

from teaching_protocol.channel import TOKEN_KEY, TOKEN_SCHEME, check_address
from teaching_protocol.errors import ConfigError

__all__ = ["TOKEN_VARIABLE", "Credentials"]

TOKEN_VARIABLE = "TEACHER_TOKEN"
"""Environment variable a token is taken from where no file is named. A command line would show it to every user of the host."""

Metadata = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Credentials:
    """How a teacher is connected to.

    Attributes:
        ca: PEM file of the CA that the teacher's certificate must come from; turns TLS on.
        cert, key: PEM files of this student's own certificate, for a server that asks for one; turn TLS on.
        token_file: file with the token, read again when it changes; None takes `TEACHER_TOKEN`, or none.
        tls: use TLS with the public CAs that gRPC brings, where no `ca` is named.
        server_name: name the teacher's certificate must have, where that is not the address's.
        insecure: send the token even where others could read it: without TLS, to another machine.
    """

    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    token_file: Path | None = None
    tls: bool = False
    server_name: str | None = None
    insecure: bool = False

    @property
    def uses_tls(self) -> bool:
        """Whether the connection is encrypted and the teacher proves who it is."""
        return self.tls or self.ca is not None or self.cert is not None

    def channel(self, address: str, options: Sequence[tuple[str, int | str]]) -> grpc.Channel:
        """A channel to `address`; over TLS the token goes along as call credentials.

        Raises:
            ConfigError: an address that is none, files that cannot be read or do not belong together, or a token that
                would travel readable.
        """
        check_address(address)
        if not self.uses_tls:
            if self.token() and not self.insecure and not _is_here(address):
                raise ConfigError(
                    f"the token for {address} would be readable on its way: the connection has no TLS. Give the CA of the "
                    "teacher's certificate (teacher.ca, --ca), or set teacher.insecure if the network is trusted"
                )
            return grpc.insecure_channel(address, options=options)
        if self.server_name:
            options = [*options, ("grpc.ssl_target_name_override", self.server_name)]
        proof = self._ssl()
        if self.token():
            proof = grpc.composite_channel_credentials(proof, grpc.metadata_call_credentials(_TokenPlugin(self)))
        return grpc.secure_channel(address, proof, options=options)

    def metadata(self) -> Metadata:
        """What each call must carry beside the channel's own: the token, where the channel cannot."""
        token = "" if self.uses_tls else self.token()
        return ((TOKEN_KEY, f"{TOKEN_SCHEME} {token}"),) if token else ()

    def token(self) -> str:
        """The token as it is now, or an empty text.

        Raises:
            ConfigError: a file that cannot be read, holds no token, or that others may read.
        """
        if self.token_file is None:
            return os.environ.get(TOKEN_VARIABLE, "").strip()
        try:
            mode = self.token_file.stat().st_mode
            text = self.token_file.read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or "no text"
            raise ConfigError(
                f"token file {self.token_file} cannot be read: {why}; give the file that `teacher-server token add` wrote"
            ) from None
        if mode & 0o077:
            raise ConfigError(
                f"token file {self.token_file} may be read by others (mode {mode & 0o777:o}); chmod 600 it"
            )
        if not text or not text.isascii() or len(text.split()) != 1:
            raise ConfigError(
                f"token file {self.token_file} holds no token: expected one line, as token add printed it"
            )
        return text

    def _ssl(self) -> grpc.ChannelCredentials:
        if (self.cert is None) != (self.key is None):
            raise ConfigError("teacher.cert and teacher.key go together; give both, or neither")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        try:
            if self.ca is not None:
                context.load_verify_locations(self.ca)
            if self.cert is not None and self.key is not None:
                context.load_cert_chain(self.cert, self.key, password="")
            parts = [None if path is None else path.read_bytes() for path in (self.ca, self.key, self.cert)]
        except (ssl.SSLError, OSError) as error:
            named = ", ".join(str(path) for path in (self.ca, self.cert, self.key) if path is not None)
            raise ConfigError(
                f"{named}: expected PEM files, a key with its own certificate ({error.strerror})"
            ) from error
        return grpc.ssl_channel_credentials(*parts)


class _TokenPlugin(grpc.AuthMetadataPlugin):
    """Puts the token on each call of a channel with TLS."""

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials

    def __call__(self, context: grpc.AuthMetadataContext, callback: grpc.AuthMetadataPluginCallback) -> None:
        try:
            callback(((TOKEN_KEY, f"{TOKEN_SCHEME} {self._credentials.token()}"),), None)
        except ConfigError as error:
            callback((), error)


def _is_here(address: str) -> bool:
    """Whether the address never leaves this machine."""
    host = address.rpartition(":")[0].strip("[]")
    if host == "localhost" or address.startswith("unix:"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
