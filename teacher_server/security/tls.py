"""TLS of the server, which takes new certificates in while it runs, and which addresses may be bound without it; knows no token."""

from __future__ import annotations

import ipaddress
import ssl
from pathlib import Path

import grpc

from teacher_server.config import ServerConfig
from teacher_server.security.watched import Watched
from teaching_protocol.errors import ConfigError, InvalidSetting, PortInUse

__all__ = ["bind", "check_bind", "is_loopback", "server_credentials"]


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False  # a name: nobody knows what it resolves to tomorrow


def check_bind(config: ServerConfig) -> None:
    """Refuses to serve strangers.

    Raises:
        InvalidSetting: an address is public, and TLS or who may call is missing.
        ConfigError: half of a pair of files.
    """
    if (config.tls_cert is None) != (config.tls_key is None):
        raise ConfigError("tls_cert and tls_key go together; give both, or neither")
    if config.client_ca is not None and config.tls_cert is None:
        raise ConfigError("client_ca needs TLS; give --tls-cert and --tls-key as well")
    if config.revoked_certs is not None and config.client_ca is None:
        raise ConfigError(
            "revoked_certs is a list of clients' certificates; give the CA they come from (--client-ca) as well"
        )
    missing = []
    if config.tls_cert is None:
        missing.append("TLS (--tls-cert FILE --tls-key FILE)")
    if config.tokens is None and config.client_ca is None:
        missing.append(
            "a list of who may call (--tokens FILE, made by `teacher-server token add NAME`, or --client-ca FILE)"
        )
    if missing and not is_loopback(config.host) and not config.insecure:
        raise InvalidSetting(
            f"host {config.host}: anyone who reaches this address could use the teacher or read what is said; missing "
            f"{' and '.join(missing)}. Give that, or bind 127.0.0.1, or say --insecure if the network is trusted"
        )
    if config.metrics_port >= 0:
        _check_metrics_bind(config)


def _check_metrics_bind(config: ServerConfig) -> None:
    """The same for metrics and status page; browsers and Prometheus show tokens there, so certificates do not do."""
    missing = [] if config.tls_cert is not None else ["TLS (--tls-cert FILE --tls-key FILE)"]
    if config.tokens is None:
        missing.append("tokens (--tokens FILE, made by `teacher-server token add NAME`)")
    if missing and not is_loopback(config.metrics_host) and not config.insecure:
        raise InvalidSetting(
            f"metrics_host {config.metrics_host}: anyone who reaches this address could read the metrics and the status "
            f"page; missing {' and '.join(missing)}. Give that, or --metrics-host 127.0.0.1, or --metrics-port -1, or "
            "say --insecure if the network is trusted"
        )


def bind(server: grpc.Server, host: str, port: int, credentials: grpc.ServerCredentials | None) -> int:
    """Binds a server's port, with TLS where there are credentials; gives the port that it got.

    Raises:
        PortInUse: it cannot be bound.
    """
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        if credentials is None:
            return server.add_insecure_port(address)
        return server.add_secure_port(address, credentials)
    except RuntimeError as error:
        raise PortInUse(
            f"{address} cannot be bound: it is in use, or no address of this machine; choose another --port, or 0 for a free one"
        ) from error


def server_credentials(config: ServerConfig) -> grpc.ServerCredentials | None:
    """What the port proves and asks for: the server's certificate, and the client's if `client_ca` is given.

    The files are looked at before each handshake: a connection that is opened after they were replaced gets what is there then.

    Raises:
        ConfigError: files that cannot be read, or that do not belong together.
    """
    if config.tls_cert is None or config.tls_key is None:
        return None
    cert, key, authority = config.tls_cert, config.tls_key, config.client_ca
    paths = [path for path in (cert, key, authority) if path is not None]
    files = Watched("the TLS certificate, key or CA", paths, lambda: _configuration(cert, key, authority))
    return grpc.dynamic_ssl_server_credentials(
        files.content,
        lambda: files.content if files.changed() else None,  # type: ignore[arg-type, return-value]  # None: no change
        require_client_authentication=authority is not None,
    )


def _configuration(cert: Path, key: Path, authority: Path | None) -> grpc.ServerCertificateConfiguration:
    """The files as gRPC takes them, after Python's own TLS has taken them."""
    found = _contents(cert, key, authority)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(cert, key, password="")
    except (ssl.SSLError, OSError) as error:
        raise ConfigError(
            f"tls_cert {cert} and tls_key {key} are no PEM certificate and its key, without a password"
        ) from error
    try:
        if authority is not None:
            context.load_verify_locations(authority)
    except (ssl.SSLError, OSError) as error:
        raise ConfigError(f"client_ca {authority} holds no PEM certificate") from error
    if found != _contents(cert, key, authority):
        raise ConfigError(f"tls_cert {cert} or what belongs to it was written while it was read")
    chain, secret, roots = found
    return grpc.ssl_server_certificate_configuration([(secret, chain)], root_certificates=roots)


def _contents(cert: Path, key: Path, authority: Path | None) -> tuple[bytes, bytes, bytes | None]:
    roots = None if authority is None else _read(authority, "client_ca")
    return _read(cert, "tls_cert"), _read(key, "tls_key"), roots


def _read(path: Path, field: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{field} {path} cannot be read: {error.strerror}") from error
