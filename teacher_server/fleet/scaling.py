"""How many replicas there should be, by how long calls wait; a pure choice with the time handed in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Bounds", "Scaling"]


@dataclass(frozen=True)
class Bounds:
    """When a replica joins or leaves.

    Attributes:
        least, most: numbers of replicas.
        up_s, down_s: seconds that calls wait, in the mean of all replicas, above which one joins and below which one leaves.
        up_after_s, down_after_s: seconds for which that must have held.
    """

    least: int
    most: int
    up_s: float
    down_s: float
    up_after_s: float
    down_after_s: float


class Scaling:
    """One replica more or less at a time, each only after its condition has held for as long as `bounds` says.

    Args:
        bounds: when.
        count: replicas at the start.
    """

    def __init__(self, bounds: Bounds, count: int) -> None:
        self.wanted = count
        self._bounds = bounds
        self._above: float | None = None
        self._below: float | None = None
        self._full_until = -math.inf

    def make_do(self, until: float) -> bool:
        """Wants one less, as there is no room for it, and no more until then; false where it is the fewest already."""
        if self.wanted <= self._bounds.least:
            return False
        self._become(self.wanted - 1)
        self._full_until = until
        return True

    def look(self, queue_s: Sequence[float], now: float) -> int:
        """The number of replicas wanted.

        Args:
            queue_s: seconds that calls wait at each replica that serves; fewer or more of them than are wanted is a fleet
                in motion, of which nothing is concluded.
            now: seconds on any clock that does not go back.
        """
        bounds = self._bounds
        if len(queue_s) != self.wanted:
            self._above = self._below = None
            return self.wanted
        mean_s = sum(queue_s) / len(queue_s)
        self._above = (self._above if self._above is not None else now) if mean_s > bounds.up_s else None
        self._below = (self._below if self._below is not None else now) if mean_s < bounds.down_s else None
        may_grow = self.wanted < bounds.most and now >= self._full_until
        if self._above is not None and now - self._above >= bounds.up_after_s and may_grow:
            self._become(self.wanted + 1)
        elif self._below is not None and now - self._below >= bounds.down_after_s and self.wanted > bounds.least:
            self._become(self.wanted - 1)
        return self.wanted

    def _become(self, count: int) -> None:
        self.wanted, self._above, self._below = count, None, None
