"""SIGTERM and Ctrl-C as a wish that the loop reads between two steps; knows no loop."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

__all__ = ["Interrupts"]


class Interrupts:
    """While entered, the first SIGTERM or SIGINT is noted in `signal`; the second one acts as it always did.

    Outside the main thread, where signals cannot be handled, it notes nothing.
    """

    def __init__(self) -> None:
        self.signal = 0
        """Number of the signal that came; 0 for none."""
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        self.signal = 0
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
