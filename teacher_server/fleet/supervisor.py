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

__all__ = ["Directory", "Hosts", "Limits", "Supervisor", "Worker"]

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 60.0
_MOST_FAILURES = 5
_SLOW_S = 30.0  # a process that has room begins sooner


@dataclass(frozen=True)
class Limits:
    """Seconds after which a replica is not waited for.

    Attributes:
        stale_s, hung_s: without a report, after which it does not count as serving, and is killed.
        room_s: without room in the cluster, after which the fleet makes do with fewer.
    """

    stale_s: float = 3.0
    hung_s: float = 30.0
    room_s: float = 300.0


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

    def lack(self) -> str:
        """What is missing for one more now, in words; empty where there is room."""
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
    """Where a replica is or will be.

    `asked_at` it was asked for; `lacks` says why it has no room yet, and is said again at `next_word`.
    """

    name: str
    worker: Worker
    asked_at: float
    next_word: float
    lacks: str = ""
    leaving: bool = False
    draining: bool = False


class Supervisor:
    """A fleet of replicas.

    Args:
        hosts: where they are started.
        directory: what they report to.
        scaling: how many are wanted.
        limits: after which nobody is waited for.
        say: is told in a sentence what happens.

    Attributes:
        serving: who served at the last turn.
        counts: how many replicas were `wanted` then, and how many `serving`, `waiting` for room, `leaving`, or `starting`.
        losses: replicas that were lost for good.
        given_up: replicas that were given up as the cluster had no room for them.
    """

    def __init__(
        self,
        hosts: Hosts,
        directory: Directory,
        scaling: Scaling,
        limits: Limits | None = None,
        say: Callable[[str], None] = lambda sentence: None,
    ) -> None:
        self._hosts, self._directory, self._scaling = hosts, directory, scaling
        self._limits, self._say = limits or Limits(), say
        self._places: dict[str, _Place] = {}
        self._failures, self._begins_at = 0, 0.0
        self.serving: tuple[Report, ...] = ()
        self.losses = self.given_up = 0
        self.counts = self._counted()

    @property
    def is_complete(self) -> bool:
        """Whether as many serve as are wanted."""
        return len(self.serving) >= self._scaling.wanted

    @property
    def has_settled(self) -> bool:
        """Whether some serve, and all who do not wait for room that is not there."""
        waiting = sum(bool(each.lacks) for each in self._places.values())
        return bool(self.serving) and len(self.serving) + waiting >= self._scaling.wanted

    def _counted(self) -> dict[str, int]:
        places, serving = self._places.values(), {each.name for each in self.serving}
        found = {"serving": 0, "waiting": 0, "leaving": 0, "starting": 0}
        for each in places:
            at_work = "serving" if each.name in serving else "waiting" if each.lacks else "starting"
            found["leaving" if each.leaving else at_work] += 1
        return {"wanted": self._scaling.wanted, **found}

    def turn(self) -> None:
        """Does what is to be done now; returns at once.

        Raises:
            ServiceError: replica after replica fails before any serves; the last one's reason.
        """
        now = time.monotonic()
        reports = self._directory.reports()
        self._bury(now)
        self._look_after(reports)
        self._look_for_room(reports, now)
        for name in self._directory.asked():
            self._ask_to_leave(name, "somebody asked for that")
        staying = [each for each in self._places.values() if not each.leaving]
        wanted = self._scaling.look([report.queue_s for report in self.serving if self._stays(report.name)], now)
        if len(staying) < wanted and now >= self._begins_at:
            self._begin(now)
        elif len(staying) > wanted:
            spare = min(staying, key=lambda each: _load(reports, each.name))
            self._ask_to_leave(spare.name, f"{wanted} are enough")
        self._drain_leaving(wanted)
        self.counts = self._counted()

    def end(self, limit_s: float) -> None:
        """Drains all, and kills who is left after so many seconds."""
        until = time.monotonic() + limit_s
        for place in list(self._places.values()):
            if not place.draining:
                self._send_away(place)
        while self._places and time.monotonic() < until:
            self._bury(time.monotonic())
            time.sleep(0.05)
        for place in self._places.values():
            place.worker.kill()
        self._places.clear()

    def _stays(self, name: str) -> bool:
        return name in self._places and not self._places[name].leaving

    def _look_for_room(self, reports: Mapping[str, tuple[Report, float]], now: float) -> None:
        """Says who waits for room, and makes do with fewer once one has waited for too long.

        Raises:
            ServiceError: one has, and nobody serves.
        """
        for place in list(self._places.values()):
            if place.leaving or place.name in reports:
                place.lacks = ""
            elif now >= place.next_word:
                before, place.lacks = place.lacks, self._hosts.lack()
                place.next_word = now + _SLOW_S
                if place.lacks and not before:
                    self._say(f"{place.name} waits for room: {place.lacks}")
                if now - place.asked_at >= self._limits.room_s:
                    self._has_no_room(place, reports, now)

    def _has_no_room(self, place: _Place, reports: Mapping[str, tuple[Report, float]], now: float) -> None:
        why = f"has waited {now - place.asked_at:.0f} s for its place ({place.lacks or 'its process has not begun'})"
        if self._scaling.make_do(now + self._limits.room_s):
            self._say(f"{place.name} {why}; it is given up, {self._scaling.wanted} have to do")
            self.given_up += 1
            place.worker.kill()
            del self._places[place.name]
        elif not reports:
            raise ServiceError(f"{place.name} {why}, and no other serves; give each less, or the cluster more")
        else:
            self._say(f"{place.name} {why}; fewer than {self._scaling.wanted} must not be, so it goes on waiting")
            place.asked_at = now

    def _look_after(self, reports: Mapping[str, tuple[Report, float]]) -> None:
        """Notes who serves; kills who has been silent for too long."""
        serving: list[Report] = []
        hung: list[str] = []
        for name, place in self._places.items():
            report, age_s = reports.get(name, (None, 0.0))
            if report is not None and report.state == "serving" and age_s < self._limits.stale_s:
                serving.append(report)
            is_hung = report is not None and report.state == "serving" and age_s > self._limits.hung_s
            if is_hung and not place.draining:
                self._say(f"{name} has said nothing for {age_s:.0f} s; it is killed, another takes its place")
                place.worker.kill()
                self._directory.forget(name)
                hung.append(name)
        for name in hung:
            del self._places[name]
        known = {each.name for each in self.serving}
        for report in serving:
            if report.name not in known:
                self._say(f"{report.name} serves at {report.address}" + (f", GPUs {report.gpus}" * bool(report.gpus)))
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
            self.losses += 1
            pause_s = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2.0 ** (self._failures - 1))
            self._begins_at = now + pause_s
            self._say(f"{place.name} is lost for good ({reason}); another begins in {pause_s:.0f} s")
            if self._failures >= _MOST_FAILURES:
                raise ServiceError(
                    f"{self._failures} replicas in a row failed before any served, the last one: {reason}"
                )

    def _begin(self, now: float) -> None:
        taken = set(self._places)
        name = next(name for number in range(len(taken) + 1) if (name := f"replica-{number}") not in taken)
        self._places[name] = _Place(name, self._hosts.begin(name), now, now + _SLOW_S)
        self._say(f"{name} begins")

    def _ask_to_leave(self, name: str, why: str) -> None:
        place = self._places.get(name)
        if place is not None and not place.leaving:
            place.leaving = True
            self._say(f"{name} is to leave: {why}")

    def _drain_leaving(self, wanted: int) -> None:
        """Drains who is to leave, once enough others serve to take the students, or one of them waits for its room."""
        needs_room = any(each.lacks for each in self._places.values())
        if sum(self._stays(report.name) for report in self.serving) < wanted and not needs_room:
            return
        for place in list(self._places.values()):
            if place.leaving and not place.draining:
                self._send_away(place)

    def _send_away(self, place: _Place) -> None:
        """Drains a replica; one that waits for room or still starts has nobody, and is killed."""
        report, _ = self._directory.reports().get(place.name, (None, 0.0))
        if report is None or report.state == "starting":
            place.worker.kill()
            self._directory.forget(place.name)
            del self._places[place.name]
            self._say(f"{place.name} ends before it serves")
            return
        place.draining = place.leaving = True
        place.worker.drain()
        self._say(f"{place.name} drains")


def _load(reports: Mapping[str, tuple[Report, float]], name: str) -> tuple[int, int]:
    """Fewest sessions first, of equals the newest place: who is sent away."""
    sessions = reports[name][0].sessions if name in reports else 0
    return sessions, -int(name.rpartition("-")[2])
