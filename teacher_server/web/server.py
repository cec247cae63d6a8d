"""The HTTP port: a socket, a thread with an event loop of its own, a reading every now and then; knows no page."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import threading
from collections.abc import Callable

import uvicorn
from starlette.types import ASGIApp

from teacher_server.config import ServerConfig
from teacher_server.security.tls import is_loopback
from teacher_server.web.connections import BoundedConnection
from teaching_protocol.errors import PortInUse

__all__ = ["WebServer"]

_log = logging.getLogger(__name__)

_BACKLOG = 64
_UNREAD_MS = 30_000
_KEEP_ALIVE_S, _GOODBYE_S = 15, 1


class WebServer:
    """Serves an application on the metrics port; `start` returns when it is bound.

    Args:
        config: where, and whether under TLS: with the certificate of the gRPC port, unless only this machine reaches it.
        app: what is served.
        sample: called every `status_interval_s` seconds, in the thread that serves.
    """

    def __init__(self, config: ServerConfig, app: ASGIApp, sample: Callable[[], None]) -> None:
        self.port = 0
        self._config = config
        self._sample = sample
        with_tls = config.tls_cert is not None and not is_loopback(config.metrics_host)
        self._server = uvicorn.Server(
            uvicorn.Config(
                app,
                loop="asyncio",
                http=BoundedConnection,
                ws="none",
                lifespan="off",
                log_config=None,
                log_level="error",
                access_log=False,
                proxy_headers=False,
                server_header=False,
                backlog=_BACKLOG,
                timeout_keep_alive=_KEEP_ALIVE_S,
                timeout_graceful_shutdown=_GOODBYE_S,
                ssl_certfile=config.tls_cert if with_tls else None,
                ssl_keyfile=config.tls_key if with_tls else None,
            )
        )
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="web", daemon=True)

    def start(self) -> None:
        """Binds, and serves from then on.

        Raises:
            PortInUse: the address cannot be bound.
        """
        host, port = self._config.metrics_host, self._config.metrics_port
        try:
            self._socket = _bound(host, port)
        except OSError as error:
            raise PortInUse(
                f"metrics port {host}:{port} cannot be bound: {error}; "
                "choose another --metrics-port, 0 for a free one, or -1 for none"
            ) from error
        self.port = self._socket.getsockname()[1]
        self._thread.start()

    def close(self) -> None:
        """Answers what is being answered, and ends."""
        self._server.should_exit = True
        self._thread.join()
        self._socket.close()

    async def _serve(self) -> None:
        sampling = asyncio.create_task(self._sample_on())
        try:
            await self._server.serve(sockets=[self._socket])
        finally:
            sampling.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await sampling

    async def _sample_on(self) -> None:
        while True:
            try:
                self._sample()
            except Exception:  # a figure that cannot be had is no reason to stop serving the others
                _log.exception("the status page's figures could not be read")
            await asyncio.sleep(self._config.status_interval_s)


def _bound(host: str, port: int) -> socket.socket:
    """A listening socket. What it accepts is given up by the system when the other end does not read for a while."""
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    both = family == socket.AF_INET6 and address[0] == "::" and socket.has_dualstack_ipv6()
    found = socket.create_server(address, family=family, backlog=_BACKLOG, dualstack_ipv6=both)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        found.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNREAD_MS)
    return found
