"""Whether a batch is worth holding back for students about to call, as a pure choice; no clock, no thread.

Closed-loop students under a greedy queue split into cohorts that take turns: while one cohort is computed, the other
thinks. A short wait joins them. The same wait keeps a student's turn for it, as a disk scheduler does for a process that
is about to read on (Iyer and Druschel 2001, "Anticipatory scheduling"); both are bounded, and nobody is waited for who
is not known to be about to call.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from teacher_server.jobs import Batch
from teacher_server.policy import Rules, area
from teacher_server.rhythm import Expected, kind_of

__all__ = ["Patience", "companions", "linger_s"]


@dataclass(frozen=True)
class Patience:
    """How long a batch may be held back: seconds, and a share of its own expected seconds for each student that joins."""

    limit_s: float
    share: float

    def gain_s(self, batch_s: float, students: int) -> float:
        """Seconds that so many students more are worth."""
        return min(self.limit_s, self.share * batch_s * students)


def companions(batch: Batch, expected: Sequence[Expected], batches: Collection[int], rules: Rules) -> list[Expected]:
    """Those about to send what may join this batch: the same kind of call with the same bucket as last time.

    A Backward also joins those whose Forward ran in one batch with its own; `batches` are the numbers of the batches in
    which this batch's students were answered last.
    """
    first = batch.jobs[0]
    kind = kind_of(first)
    if kind is None or first.bucket is None or not rules.merge:
        return []
    room = rules.batch_tokens - area(batch.jobs)
    found = []
    for each in expected:
        alike = each.bucket == first.bucket or (kind == "backward" and each.batch in batches)
        if each.kind == kind and alike and each.tokens <= room:
            room -= each.tokens
            found.append(each)
    return found


def linger_s(
    batch_s: float, joining: Sequence[Expected], in_turn: Sequence[Expected], waited_s: float, patience: Patience
) -> float:
    """Seconds to hold a batch back from now; 0 to run it.

    Args:
        batch_s: seconds the batch is expected to take.
        joining: who is about to send what may join it, soonest first.
        in_turn: who is about to send what should run before it.
        waited_s: seconds it has been held back already.
        patience: the bounds.
    """
    options = [*enumerate(joining, 1), *((1, each) for each in in_turn)]
    best_s = hold_s = 0.0
    for students, each in options:
        left_s = patience.gain_s(batch_s, students) - waited_s
        if left_s - each.in_s > best_s:
            best_s, hold_s = left_s - each.in_s, min(left_s, each.at_most_s)
    return hold_s
