"""Serves a process's metrics to Prometheus: for those that have no server of their own to do it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, start_http_server

from teaching_protocol.errors import PortInUse

__all__ = ["scraped"]


@contextmanager
def scraped(registry: CollectorRegistry, what: str, host: str, port: int, remedy: str) -> Iterator[str]:
    """Serves a registry at /metrics while the `with` lasts; gives `host:port`, empty where `port` is -1 (then nothing is served).

    Args:
        what: what the error calls the port.
        port: 0 for a free one.
        remedy: what the error says to choose instead.

    Raises:
        PortInUse: the port cannot be bound.
    """
    if port < 0:
        yield ""
        return
    try:
        server, thread = start_http_server(port, host, registry)
    except OSError as error:
        raise PortInUse(f"{what} {host}:{port} cannot be bound: {error}; choose another {remedy}") from error
    try:
        yield f"{host}:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
