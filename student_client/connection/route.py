"""Where one session goes: the teacher's replicas in the order it prefers them, what failed, what is better by now; calls no verb."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from student_client.connection.credentials import Credentials
from student_client.connection.pinning import ranked
from student_client.connection.resolving import DNS, expanded, resolve
from teaching_protocol.directory import Replica
from teaching_protocol.errors import ServiceError, TeachingError

__all__ = ["Place", "Route"]

_ASK_S = 2.0
_LONGEST_SETTLE_S = 600.0

Ask = Callable[[str, float], tuple[Replica, ...] | None]


@dataclass(frozen=True)
class Place:
    """A replica: the name it is preferred by, and `host:port`."""

    name: str
    address: str

    def __str__(self) -> str:
        """For sentences."""
        return self.address if self.name == self.address else f"{self.name} at {self.address}"


class Route:
    """The way of one session among the replicas of its teacher.

    Written addresses are gone to in their order. Those that a directory or DNS gives are ranked by rendezvous hashing of
    the student's name, so that students spread over the replicas, and a replica that comes or goes moves few of them.

    Args:
        addresses: `host:port` of a teacher, of any replica or of a fleet's directory; or `dns:///NAME:PORT`.
        student: its name, by which it is placed.
        credentials: who asks, and whom it trusts.
        spread: rank written addresses, too.
        settle_s: seconds after a replica failed before it counts as better than another; they double with each failure.
        ask: asks one address for the replicas it knows of.

    Attributes:
        place: where the session is, or goes next.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        student: str = "",
        credentials: Credentials | None = None,
        spread: bool = False,
        settle_s: float = 30.0,
        ask: Ask | None = None,
    ) -> None:
        known = credentials or Credentials()
        self._written, self._student, self._spread, self._settle_s = tuple(addresses), student, spread, settle_s
        self._ask: Ask = ask or (lambda address, limit_s: resolve(address, known, limit_s))
        self._uses_dns = any(address.startswith(DNS) for address in addresses)
        self.place = Place(self._written[0], self._written[0])
        self._order: list[Place] = [Place(address, address) for address in self._written]
        self._is_live = False  # whether who is listed is there: a written list says nothing of that
        self._found = False
        self._tried: set[Place] = set()
        self._failures: dict[str, tuple[int, float]] = {}
        self._better: Place | None = None

    @property
    def has_others(self) -> bool:
        """Whether there is another replica than that of `place`."""
        return any(each != self.place for each in self._order)

    @property
    def has_untried(self) -> bool:
        """Whether there is a replica that was not tried since a session was open."""
        return any(each != self.place and each not in self._tried for each in self._order)

    @property
    def has_better(self) -> bool:
        """Whether the last `look` has found a better replica."""
        return self._better is not None

    def find(self) -> bool:
        """Looks for the first place, once; whether `place` has changed.

        Raises:
            TeachingError: a directory that refuses or has no replica yet, a name without address.
        """
        if self._found:
            return False
        before = self.place
        self._found = self._refresh()
        if self._found and self._order:
            self.place = self._order[0]
        return self.place != before

    def stay_at(self, address: str) -> None:
        """Somebody else has found the place, and asks no more."""
        self.place, self._found = Place(address, address), True

    def arrived(self) -> None:
        """Notes that a session was opened at `place`."""
        self._tried.clear()

    def move_on(self) -> None:
        """`place` has failed: the best of the others that were not tried since a session was open; round and round.

        Raises:
            CallerError: a directory refuses this student.
        """
        failures, _ = self._failures.get(self.place.name, (0, 0.0))
        self._failures[self.place.name] = (failures + 1, time.monotonic())
        self._tried.add(self.place)
        self._better = None
        with suppress(ServiceError):  # then what was known holds
            self._found = self._refresh() or self._found
        left = [each for each in self._order if each not in self._tried]
        if not left:
            self._tried.clear()
            left = [each for each in self._order if each != self.place] or self._order
        if left:
            self.place = left[0]

    def look(self) -> bool:
        """Whether the session belongs to another replica that serves by now: one that joined, or came back and has settled.

        Only a directory or DNS can tell. Nobody who fails to answer is waited for.
        """
        self._better = None
        try:
            if not self._is_live or not self._refresh():
                return False
        except TeachingError:
            return False  # whoever refuses to say, the session is well where it is
        settled = [each for each in self._order if not self._is_fresh_from_failure(each.name)]
        if settled and settled[0] != self.place and self._ask(settled[0].address, _ASK_S) is not None:
            self._better = settled[0]
        return self._better is not None

    def take_better(self) -> bool:
        """Makes what `look` found the place to go to; whether there was any."""
        if self._better is None:
            return False
        self.place, self._better = self._better, None
        return True

    def _is_fresh_from_failure(self, name: str) -> bool:
        failures, at = self._failures.get(name, (0, 0.0))
        wait_s = min(_LONGEST_SETTLE_S, self._settle_s * 2.0 ** max(0, min(failures, 16) - 1))
        return failures > 0 and name != self.place.name and time.monotonic() - at < wait_s

    def _refresh(self) -> bool:
        """Asks anew who serves, those that are known first; false where nobody answers, and what was known holds."""
        written = [each for address in self._written for each in expanded(address)] if self._uses_dns else self._written
        known = [each.address for each in self._order if each != self.place] if self._is_live else []
        for address in dict.fromkeys((*known, *written)):
            found = self._ask(address, _ASK_S)
            if found is None:
                continue
            if found:
                self._rank([Place(each.name, each.address) for each in found if each.state == "serving"])
                self._is_live = True
            else:
                self._take_written(written)
            return True
        if self._uses_dns:  # who is listed by DNS need not answer such questions
            self._take_written(written)
        return self._uses_dns

    def _take_written(self, written: Sequence[str]) -> None:
        places = [Place(address, address) for address in dict.fromkeys(written)]
        self._is_live = self._uses_dns
        if self._uses_dns or self._spread:
            self._rank(places)
        else:
            self._order = places

    def _rank(self, places: Sequence[Place]) -> None:
        by_name = {each.name: each for each in places}
        self._order = [by_name[name] for name in ranked(self._student, by_name)]
