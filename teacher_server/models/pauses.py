"""Where a long batch lets a short one go first: between two of its layers, forward and backward; knows neither of them.

What runs cannot be interrupted, so whoever comes while a long batch runs would wait for all that is left of it (ours; decision 0032).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

__all__ = ["Pauses"]


class _OfThread(threading.local):
    """What one thread's pauses are at."""

    is_open = in_pause = False
    spent_s = 0.0
    share = (0.0, 1.0)


class Pauses:
    """The pauses of the threads that run the model, each thread's its own; there are none while they are not opened.

    Attributes:
        go_first: what is done in a pause, in the same thread; may run another batch from beginning to end. It is told which
            share of the layers is done.
    """

    def __init__(self) -> None:
        self.go_first: Callable[[float], None] | None = None
        self._here = _OfThread()

    @property
    def are_open(self) -> bool:
        """Whether the batch that runs makes pauses; one that runs in a pause makes none."""
        return self._here.is_open and not self._here.in_pause and self.go_first is not None

    def clock(self) -> float:
        """Seconds on a clock that stands still in this thread's pauses."""
        return time.perf_counter() - self._here.spent_s

    @contextmanager
    def opened(self) -> Iterator[None]:
        """What runs inside makes pauses."""
        before, self._here.is_open = self._here.is_open, True
        try:
            yield
        finally:
            self._here.is_open = before

    @contextmanager
    def share(self, begin: float, end: float) -> Iterator[None]:
        """What runs inside is this share of all that the batch which makes pauses has to do, 0 to 1."""
        before = self._here.share
        if not self._here.in_pause:  # a batch that runs in a pause is no part of the one that makes it
            self._here.share = (begin, end)
        try:
            yield
        finally:
            self._here.share = before

    def after_layer(self, states: torch.Tensor, done: float) -> None:
        """A pause behind a layer, and in the backward of these states, if that has pauses too, one before it.

        Args:
            states: between the two layers.
            done: share of the layers that lie behind them, 0 to 1.
        """
        self._pause(done)
        if states.requires_grad:
            states.register_hook(lambda _: self._pause(1 - done))  # type: ignore[no-untyped-call]

    def _pause(self, done: float) -> None:
        if not self.are_open or self.go_first is None:
            return
        here, began = self._here, time.perf_counter()
        here.in_pause = True
        begin, end = here.share
        try:
            with torch.enable_grad():  # as at the beginning of any batch; a backward has it switched off
                self.go_first(begin + done * (end - begin))
        finally:
            here.in_pause = False
            here.spent_s += time.perf_counter() - began
