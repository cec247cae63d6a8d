"""Channel options both ends share: addresses, size limit, keepalive, how an error travels; opens nothing."""

from __future__ import annotations

from collections.abc import Iterable

from teaching_protocol.errors import ERRORS, ConfigError, InternalError, TeachingError

__all__ = [
    "CLOCK_KEY",
    "ERROR_KEY",
    "RETRY_AFTER_KEY",
    "TOKEN_KEY",
    "TOKEN_SCHEME",
    "channel_options",
    "check_address",
    "error_from",
    "error_metadata",
    "server_options",
    "split_address",
    "wrong_port",
]

Options = list[tuple[str, int]]

ERROR_KEY = "teaching-error"
RETRY_AFTER_KEY = "teaching-retry-after-s"

CLOCK_KEY = "teaching-clock-s"
"""Trailing metadata of Describe: the server's clock as it answered, seconds since 1970 in UTC."""

TOKEN_KEY, TOKEN_SCHEME = "authorization", "Bearer"
"""Metadata: who calls, as `Bearer TOKEN`."""

_SCHEMES = ("dns:", "ipv4:", "ipv6:", "unix:", "unix-abstract:", "vsock:", "xds:")
"""What gRPC resolves by itself."""

_KEEPALIVE_MS = 60_000  # below the four minutes after which clouds cut an idle connection


def split_address(address: str) -> tuple[str, int]:
    """`host:port` in its two parts, an IPv6 host without its brackets.

    Raises:
        ConfigError: it is none.
    """
    host, _, port = address.rpartition(":")
    is_host = bool(host) and not set(host) & set("/ ") and (":" not in host or host[0] + host[-1] == "[]")
    if not is_host or not port.isdecimal() or not 0 < int(port) < 65536:
        _, secret, shown = address.rpartition("@")  # a password may stand before it
        raise ConfigError(
            f"received the address {'***@' * bool(secret) + shown!r}, expected HOST:PORT with a port of 1 to 65535; give one as 127.0.0.1:50051"
        )
    return host.strip("[]"), int(port)


def check_address(address: str) -> None:
    """Refuses what gRPC would take for the name of a host, or for another port.

    Raises:
        ConfigError: it is neither `host:port` nor a name that gRPC resolves, such as `unix:PATH` or `dns:///NAME:PORT`.
    """
    if not address.startswith(_SCHEMES):
        split_address(address)


def wrong_port(details: str) -> str:
    """What to do where gRPC's `details` say that no gRPC server answers, but the status page, say; empty elsewhere."""
    if "http1.x" not in details and "Expected SETTINGS frame" not in details:
        return ""
    return "another kind of server does, perhaps its status page; give the teacher's gRPC port, 50051 by default"


def channel_options(message_bytes: int) -> Options:
    """Options of a client's channel: `message_bytes` is the largest message either way."""
    return [
        ("grpc.max_send_message_length", message_bytes),
        ("grpc.max_receive_message_length", message_bytes),
        ("grpc.keepalive_time_ms", _KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.enable_retries", 0),
        (
            "grpc.use_local_subchannel_pool",
            1,
        ),  # a connection each: one teacher's large calls never stand before another's
        ("grpc.initial_reconnect_backoff_ms", 200),  # a teacher that was down for long is found soon after it is back
        ("grpc.max_reconnect_backoff_ms", 2_000),
    ]


def server_options(message_bytes: int) -> Options:
    """Options of a server: it accepts the keepalive pings that `channel_options` sends."""
    return [
        ("grpc.max_send_message_length", message_bytes),
        ("grpc.max_receive_message_length", message_bytes),
        ("grpc.http2.min_ping_interval_without_data_ms", _KEEPALIVE_MS // 2),
        ("grpc.so_reuseport", 0),
    ]


def error_metadata(error: TeachingError) -> tuple[tuple[str, str], ...]:
    """The trailing metadata that lets the client raise the same class again."""
    found = [(ERROR_KEY, type(error).__name__)]
    if error.retry_after_s:
        found.append((RETRY_AFTER_KEY, f"{error.retry_after_s:.3f}"))
    return tuple(found)


def error_from(metadata: Iterable[tuple[str, str | bytes]], details: str) -> TeachingError | None:
    """The error a server sent, or None when the trailing metadata holds none."""
    found = dict(metadata)
    name = found.get(ERROR_KEY)
    if name is None:
        return None
    error = ERRORS.get(str(name), InternalError)(details)
    error.retry_after_s = float(found.get(RETRY_AFTER_KEY, 0.0))
    return error
