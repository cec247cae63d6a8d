"""How often each address sent a wrong secret of late; forgets, and keeps no more than it may."""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable

__all__ = ["Failures"]


class Failures:
    """Counts wrong tokens by address.

    Args:
        limit: how many an address may send within `within_s` seconds.
        within_s: after so many seconds one is forgotten.
        kept: addresses remembered; the one that was wrong longest ago goes first.
        clock: seconds that only go forward.
    """

    def __init__(
        self, limit: int = 10, within_s: float = 60.0, kept: int = 1024, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._limit = limit
        self._within_s = within_s
        self._kept = kept
        self._clock = clock
        self._times: OrderedDict[str, deque[float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._times)

    def note(self, address: str) -> None:
        """One more wrong token from there."""
        times = self._times.setdefault(address, deque(maxlen=self._limit))
        times.append(self._clock())
        self._times.move_to_end(address)
        if len(self._times) > self._kept:
            self._times.popitem(last=False)

    def delay_s(self, address: str) -> float:
        """Seconds until the address may try a token again; 0 for now."""
        times = self._times.get(address)
        if times is None or len(times) < self._limit:
            return 0.0
        return max(0.0, times[0] + self._within_s - self._clock())
