"""When each student is about to call again, learned from when it called before; times are values, there is no clock here.

A student in a loop thinks for about as long each time between a reply and its next call. Mean and spread of that time
are followed as TCP follows round trips (Jacobson 1988, "Congestion Avoidance and Control"), one pair for each kind of call
that was answered last. Who is overdue is expected a spread from now, so that whoever also pauses for seconds now and then is not
taken to be about to call; and who has not called by mean + 4 spreads is not expected any more until it calls again.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

from teacher_server.jobs import Job
from teaching_protocol.verbs import BackwardRequest, ForwardRequest

__all__ = ["Expected", "Rhythm", "kind_of"]

_MEAN_SHARE, _SPREAD_SHARE, _SPREADS = 1 / 8, 1 / 4, 4.0
_LEAST_SPREAD_S = 0.0005
_KNOWN_AFTER = 2  # gaps


@dataclass(frozen=True)
class Expected:
    """A call that is about to come: of which lane and kind, with which bucket and tokens if it is like the last.

    `in_s` is when, and `at_most_s` when it is given up, both in seconds from now; `batch` numbers the batch its lane
    was answered in.
    """

    lane: str
    kind: str
    bucket: Hashable | None
    tokens: int
    in_s: float
    at_most_s: float
    batch: int


def kind_of(job: Job) -> str | None:
    """forward, backward or observe; None for what runs no model and is done in no time."""
    if isinstance(job.request, BackwardRequest):
        return "backward"
    if isinstance(job.request, ForwardRequest):
        return "forward" if job.request.backward_follows else "observe"
    return None


@dataclass
class _Gap:
    """Seconds from a reply to the next call, and of which kind that call is."""

    next_kind: str
    mean_s: float
    spread_s: float
    seen: int = 1

    @property
    def late_s(self) -> float:
        return self.mean_s + _SPREADS * max(self.spread_s, _LEAST_SPREAD_S)

    def learn(self, kind: str, seconds: float) -> None:
        """Follows one more gap; a single long pause (an evaluation, a checkpoint) counts as no more than late."""
        if self.seen >= _KNOWN_AFTER:
            seconds = min(seconds, 2 * self.late_s)
        error = seconds - self.mean_s
        self.mean_s += _MEAN_SHARE * error
        self.spread_s += _SPREAD_SHARE * (abs(error) - self.spread_s)
        self.next_kind = kind
        self.seen += 1


@dataclass
class _Loop:
    """One lane's calls of one sort, training or observing: how many are under way, and what was answered last."""

    under_way: int = 0
    replied: float | None = None
    last_kind: str = ""
    batch: int = 0
    gaps: dict[str, _Gap] = field(default_factory=dict)
    buckets: dict[str, tuple[Hashable | None, int]] = field(default_factory=dict)


class Rhythm:
    """The rhythm of every lane."""

    def __init__(self) -> None:
        self._loops: dict[tuple[str, bool], _Loop] = {}

    def __len__(self) -> int:
        return len(self._loops)

    def called(self, job: Job, now: float) -> None:
        """A job has come."""
        kind = kind_of(job)
        if kind is None:
            return
        loop = self._loops.setdefault((job.lane, kind == "observe"), _Loop())
        if loop.under_way == 0 and loop.replied is not None:
            seconds = max(0.0, now - loop.replied)
            if loop.last_kind in loop.gaps:
                loop.gaps[loop.last_kind].learn(kind, seconds)
            else:
                loop.gaps[loop.last_kind] = _Gap(kind, seconds, seconds / 2)
        loop.under_way += 1
        loop.buckets[kind] = (job.bucket, job.tokens)

    def replied(self, job: Job, now: float, batch: int, good: bool) -> None:
        """A job is done; after one that failed nothing is expected of its lane."""
        kind = kind_of(job)
        if kind is None:
            self._pause(job, now)
            return
        loop = self._loops.get((job.lane, kind == "observe"))
        if loop is not None:
            loop.under_way -= 1
            loop.replied, loop.last_kind, loop.batch = (now if good else None), kind, batch

    def at_work(self, lane: str, now: float) -> bool:
        """Whether a lane without calls under way has been away for no longer than it usually is."""
        return any(self._expected(key, now) is not None for key in ((lane, False), (lane, True)))

    def expected(self, now: float) -> list[Expected]:
        """The calls that are about to come, soonest first."""
        found = [each for key in self._loops if (each := self._expected(key, now)) is not None]
        return sorted(found, key=lambda each: each.in_s)

    def batch_of(self, lane: str) -> int:
        """The number of the batch in which a lane's training call was answered last; 0 for none."""
        loop = self._loops.get((lane, False))
        return loop.batch if loop is not None else 0

    def forget(self, lane: str) -> None:
        """A lane has ended."""
        for observes in (False, True):
            self._loops.pop((lane, observes), None)

    def _pause(self, job: Job, now: float) -> None:
        """The time in which a Step or an Export was under way is no time of thinking."""
        loop = self._loops.get((job.lane, False))
        if loop is not None and loop.replied is not None:
            loop.replied = min(now, max(loop.replied, loop.replied + now - job.born))

    def _expected(self, key: tuple[str, bool], now: float) -> Expected | None:
        loop = self._loops.get(key)
        if loop is None or loop.under_way or loop.replied is None:
            return None
        gap = loop.gaps.get(loop.last_kind)
        if gap is None or gap.seen < _KNOWN_AFTER or now > loop.replied + gap.late_s:
            return None
        bucket, tokens = loop.buckets.get(gap.next_kind, (None, 0))
        at_most_s = loop.replied + gap.late_s - now
        due_s = loop.replied + gap.mean_s - now
        in_s = due_s if due_s > 0 else min(gap.spread_s, at_most_s)
        return Expected(key[0], gap.next_kind, bucket, tokens, in_s, at_most_s, loop.batch)
