"""How many calls of one session are open on the wire, from the first byte read to the last byte delivered; knows no gRPC.

A client that stops reading keeps its replies in this process's memory; it gets no further ones.
"""

from __future__ import annotations

import threading
from collections import Counter

from teacher_server.live import LiveSettings
from teaching_protocol.errors import QuotaExceeded

__all__ = ["Door"]

_RETRY_S = 0.1


class Door:
    """Open calls a session, `session_permits` at once."""

    def __init__(self, live: LiveSettings) -> None:
        self._live = live
        self._lock = threading.Lock()
        self._open: Counter[str] = Counter()

    def __len__(self) -> int:
        return self._open.total()

    def enter(self, session_id: str) -> None:
        """Opens a call.

        Raises:
            QuotaExceeded: the session has as many open as it may.
        """
        with self._lock:
            most = self._live.now.session_permits
            if self._open[session_id] >= most:
                raise QuotaExceeded(
                    f"this session has {most} calls open, which is the limit; read their replies, or try again later",
                    _RETRY_S,
                )
            self._open[session_id] += 1

    def leave(self, session_id: str) -> None:
        """The call's reply was delivered, or its caller has gone."""
        with self._lock:
            self._open[session_id] -= 1
            if not self._open[session_id]:
                del self._open[session_id]
