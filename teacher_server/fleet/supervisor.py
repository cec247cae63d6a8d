"""Keeps as many replicas as are wanted: begins, replaces, drains and buries them; knows no Ray and no network.

One thread, one loop: who has died, who was asked to leave, how many should be there, who is missing, who may go.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from teacher_server.fleet.registry import Report
from teacher_server.fleet.scaling import Scaling
from teaching_protocol.errors import ServiceError

__all__ = ["Directory", "Hosts", "Supervisor", "Worker"]

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 60.0
_MOST_FAILURES = 5


class Worker(Protocol):
    """The process of one replica, wherever it runs."""

    def ended(self) -> str | None:
        """Why it is over for good: a sentence, empty after a drain; None while it runs or is being started again."""
        ...

    def drain(self) -> None:
        """Has it send its students elsewhere and end; does not wait."""
        ...

    def kill(self) -> None:
        """Kills it for good."""
        ...


class Hosts(Protocol):
    """Where replicas are started."""

    def begin(self, name: str) -> Worker:
        """Starts a replica; does not wait until it serves."""
        ...


class Directory(Protocol):
    """What the replicas have reported."""

    def reports(self) -> Mapping[str, tuple[Report, float]]:
        """Every last report and its age in seconds, by name."""
        ...

    def asked(self) -> frozenset[str]:
        """Replicas that somebody wants replaced."""
        ...

    def forget(self, name: str) -> None:
        """Lets go of a replica that has ended."""
        ...


@dataclass
class _Place:
    name: str
    worker: Worker
    leaving: bool = False
    draining: bool = False


class Supervisor:
    """A fleet of replicas.

    Args:
        hosts: where they are started.
        directory: what they report to.
        scaling: how many are wanted.
        stale_s, hung_s: seconds without a report after which one does not count as serving, and is killed.
        say: is told in a sentence what happens.
    """

    def __init__(
        self,
        hosts: Hosts,
        directory: Directory,
        scaling: Scaling,
        stale_s: float = 3.0,
        hung_s: float = 30.0,
        say: Callable[[str], None] = lambda sentence: None,
    ) -> None:
        self._hosts, self._directory, self._scaling = hosts, directory, scaling
        self._stale_s, self._hung_s, self._say = stale_s, hung_s, say
        self._places: dict[str, _Place] = {}
        self._failures, self._begins_at = 0, 0.0
        self.serving: tuple[Report, ...] = ()
        """Who served at the last turn."""

    @property
    def is_complete(self) -> bool:
        """Whether as many serve as are wanted."""
        return len(self.serving) >= self._scaling.wanted

    def turn(self) -> None:
        """Does what is to be done now; returns at once.

        Raises:
            ServiceError: replica after replica fails before any serves; the last one's reason.
        """
        now = time.monotonic()
        reports = self._directory.reports()
        self._bury(now)
        self._look_after(reports)
        for name in self._directory.asked():
            self._ask_to_leave(name, "somebody asked for that")
        staying = [each for each in self._places.values() if not each.leaving]
        wanted = self._scaling.look([report.queue_s for report in self.serving if self._stays(report.name)], now)
        if len(staying) < wanted and now >= self._begins_at:
            self._begin()
        elif len(staying) > wanted:
            spare = min(staying, key=lambda each: _load(reports, each.name))
            self._ask_to_leave(spare.name, f"{wanted} are enough")
        self._drain_leaving(wanted)

    def end(self, limit_s: float) -> None:
        """Drains all, and kills who is left after so many seconds."""
        until = time.monotonic() + limit_s
        for place in self._places.values():
            if not place.draining:
                place.draining = place.leaving = True
                place.worker.drain()
        while self._places and time.monotonic() < until:
            self._bury(time.monotonic())
            time.sleep(0.05)
        for place in self._places.values():
            place.worker.kill()
        self._places.clear()

    def _stays(self, name: str) -> bool:
        return name in self._places and not self._places[name].leaving

    def _look_after(self, reports: Mapping[str, tuple[Report, float]]) -> None:
        """Notes who serves; kills who has been silent for too long."""
        serving: list[Report] = []
        hung: list[str] = []
        for name, place in self._places.items():
            report, age_s = reports.get(name, (None, 0.0))
            if report is not None and report.state == "serving" and age_s < self._stale_s:
                serving.append(report)
            if report is not None and age_s > self._hung_s and not place.draining:
                self._say(f"{name} has said nothing for {age_s:.0f} s; it is killed, another takes its place")
                place.worker.kill()
                self._directory.forget(name)
                hung.append(name)
        for name in hung:
            del self._places[name]
        self.serving = tuple(serving)
        if serving:
            self._failures = 0

    def _bury(self, now: float) -> None:
        for place in list(self._places.values()):
            reason = place.worker.ended()
            if reason is None:
                continue
            del self._places[place.name]
            self._directory.forget(place.name)
            if place.draining:
                self._say(f"{place.name} has drained and ended")
                continue
            self._failures += 1
            pause_s = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2.0 ** (self._failures - 1))
            self._begins_at = now + pause_s
            self._say(f"{place.name} is lost for good ({reason}); another begins in {pause_s:.0f} s")
            if self._failures >= _MOST_FAILURES:
                raise ServiceError(
                    f"{self._failures} replicas in a row failed before any served, the last one: {reason}"
                )

    def _begin(self) -> None:
        taken = set(self._places)
        name = next(name for number in range(len(taken) + 1) if (name := f"replica-{number}") not in taken)
        self._places[name] = _Place(name, self._hosts.begin(name))
        self._say(f"{name} begins")

    def _ask_to_leave(self, name: str, why: str) -> None:
        place = self._places.get(name)
        if place is not None and not place.leaving:
            place.leaving = True
            self._say(f"{name} is to leave: {why}")

    def _drain_leaving(self, wanted: int) -> None:
        """Drains who is to leave, once enough others serve to take the students."""
        if sum(self._stays(report.name) for report in self.serving) < wanted:
            return
        for place in self._places.values():
            if place.leaving and not place.draining:
                place.draining = True
                place.worker.drain()
                self._say(f"{place.name} drains")


def _load(reports: Mapping[str, tuple[Report, float]], name: str) -> tuple[int, int]:
    """Fewest sessions first, of equals the newest place: who is sent away."""
    sessions = reports[name][0].sessions if name in reports else 0
    return sessions, -int(name.rpartition("-")[2])
