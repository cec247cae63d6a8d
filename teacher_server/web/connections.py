"""How long one HTTP connection may take, and how many there may be; knows nothing of what is asked."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

__all__ = ["CONNECTIONS", "BoundedConnection"]

CONNECTIONS = 64
_REQUEST_S = 10.0


class BoundedConnection(H11Protocol):
    """Closed at once where there are too many, and when no whole request has come for `request_s` seconds.

    What answers is bounded by what it reads: replies are small, and the system gives up on who does not take them.
    """

    request_s = _REQUEST_S

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._hang_up: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A caller has come."""
        super().connection_made(transport)
        if len(self.connections) > CONNECTIONS:
            transport.abort()
            return
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Some of a request has come."""
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """The caller is gone."""
        self._stop_watching()
        super().connection_lost(exc)

    def _watch(self) -> None:
        """Counts the time only while no request is being answered."""
        is_answering = self.cycle is not None and not self.cycle.response_complete
        if is_answering:
            self._stop_watching()
        elif self._hang_up is None and not self.transport.is_closing():
            self._hang_up = self.loop.call_later(self.request_s, self.transport.abort)

    def _stop_watching(self) -> None:
        if self._hang_up is not None:
            self._hang_up.cancel()
            self._hang_up = None
