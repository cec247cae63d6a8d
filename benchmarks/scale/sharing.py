"""Something that several use at once, each more slowly: cores, an interpreter's lock, a network card; knows no teacher.

Work flows as a fluid. Everybody gets the same share of a core, or of a card, for each of the threads or connections it has, as
an operating system's scheduler and TCP do in the mean. Who needs less than that leaves the rest to the others.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Hashable
from dataclasses import dataclass, field

import simpy

_DONE_S = 1e-9  # less than this is left: it is done


@dataclass
class _Crowd:
    """Those who go at one speed: `speed` is the share each gets of the rate it could take; `passed` its integral in seconds."""

    limit: float
    rate: float = 0.0
    speed: float = 0.0
    passed: float = 0.0
    waiting: list[tuple[float, int, float, simpy.Event]] = field(default_factory=list)


class Shared:
    """A capacity in units a second.

    Args:
        env: whose clock it goes by.
        capacity: units a second in all: cores, or bytes a second.

    Attributes:
        used: units done so far, up to the last change.
    """

    def __init__(self, env: simpy.Environment, capacity: float) -> None:
        self.env, self.capacity, self.used = env, capacity, 0.0
        self._crowds: dict[Hashable, _Crowd] = {}
        self._last, self._numbers, self._turn = env.now, itertools.count(), 0

    def use(
        self, amount: float, most: float | None = None, group: Hashable = None, limit: float = float("inf")
    ) -> simpy.Event:
        """Does an amount of work; the event comes when it is done.

        Args:
            amount: units.
            most: units a second this one can take at most; None is the whole capacity.
            group: those of one group together get no more than `limit` units a second, such as the threads of one interpreter.
            limit: the group's.
        """
        event = self.env.event()
        rate = min(self.capacity, most or self.capacity)
        if amount <= 0:
            return event.succeed()
        self._advance()
        crowd = self._crowds.setdefault(group, _Crowd(limit if group is not None else float("inf")))
        heapq.heappush(crowd.waiting, (crowd.passed + amount / rate, next(self._numbers), rate, event))
        crowd.rate += rate
        self._settle()
        return event

    def busy(self) -> float:
        """Units done up to now."""
        self._advance()
        return self.used

    def _advance(self) -> None:
        passed_s, self._last = self.env.now - self._last, self.env.now
        for crowd in self._crowds.values():
            crowd.passed += crowd.speed * passed_s
            self.used += crowd.rate * crowd.speed * passed_s

    def _settle(self) -> None:
        """Ends what is done, shares out anew, and looks again when the next is done."""
        for group, crowd in list(self._crowds.items()):
            while crowd.waiting and crowd.waiting[0][0] - crowd.passed < _DONE_S:
                _, _, rate, event = heapq.heappop(crowd.waiting)
                crowd.rate -= rate
                event.succeed()
            if not crowd.waiting:
                del self._crowds[group]
        for crowd, speed in zip(self._crowds.values(), self._speeds(), strict=True):
            crowd.speed = speed
        self._turn += 1
        if self._crowds:
            next_s = min((crowd.waiting[0][0] - crowd.passed) / crowd.speed for crowd in self._crowds.values())
            self.env.timeout(next_s, self._turn).callbacks.append(self._look)

    def _look(self, event: simpy.Event) -> None:
        if event.value == self._turn:
            self._advance()
            self._settle()

    def _speeds(self) -> list[float]:
        """The level at which all capacity is used, or everybody has what it can take; groups at their limit leave the rest."""
        crowds = list(self._crowds.values())
        bound: set[int] = set()
        while True:
            left = self.capacity - sum(crowds[place].limit for place in bound)
            wanted = sum(crowd.rate for place, crowd in enumerate(crowds) if place not in bound)
            level = min(1.0, left / wanted) if wanted > 0 else 1.0
            more = {
                place
                for place, crowd in enumerate(crowds)
                if place not in bound and crowd.rate * level > crowd.limit * (1 + 1e-12)
            }
            if not more:
                break
            bound |= more
        return [crowd.limit / crowd.rate if place in bound else level for place, crowd in enumerate(crowds)]
