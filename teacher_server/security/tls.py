"""TLS of the server, and which addresses may be bound without it; knows no token."""

from __future__ import annotations

import ipaddress
import ssl
from pathlib import Path

import grpc

from teacher_server.config import ServerConfig
from teaching_protocol.errors import ConfigError, InvalidSetting

__all__ = ["check_bind", "is_loopback", "server_credentials"]


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


def server_credentials(config: ServerConfig) -> grpc.ServerCredentials | None:
    """What the port proves and asks for: the server's certificate, and the client's if `client_ca` is given.

    Raises:
        ConfigError: files that cannot be read, or that do not belong together.
    """
    if config.tls_cert is None or config.tls_key is None:
        return None
    chain, key = _read(config.tls_cert, "tls_cert"), _read(config.tls_key, "tls_key")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(config.tls_cert, config.tls_key, password="")
    except (ssl.SSLError, OSError) as error:
        raise ConfigError(
            f"tls_cert {config.tls_cert} and tls_key {config.tls_key} are no PEM certificate and its key, without a password"
        ) from error
    if config.client_ca is None:
        return grpc.ssl_server_credentials([(key, chain)])
    try:
        context.load_verify_locations(config.client_ca)
    except (ssl.SSLError, OSError) as error:
        raise ConfigError(f"client_ca {config.client_ca} holds no PEM certificate") from error
    authority = _read(config.client_ca, "client_ca")
    return grpc.ssl_server_credentials([(key, chain)], root_certificates=authority, require_client_auth=True)


def _read(path: Path, field: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{field} {path} cannot be read: {error.strerror}") from error
