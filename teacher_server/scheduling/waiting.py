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
from teacher_server.scheduling.policy import Rules, area
from teacher_server.scheduling.rhythm import Expected, kind_of

__all__ = ["Outlook", "Patience", "companions", "linger_s"]

_LEAST_S = 0.0002


@dataclass(frozen=True)
class Patience:
    """How long a batch may be held back: seconds, and shares of its own expected seconds.

    `share` for each student that joins; `turn_share` for one that should have gone first, which without the wait would
    have to let the whole batch pass.
    """

    limit_s: float
    share: float
    turn_share: float


@dataclass(frozen=True)
class Outlook:
    """What is known of a batch before it runs: the seconds it will take, those that a batch more would cost just for being
    started (None: not known yet), and those for which it has been held back already."""

    batch_s: float
    start_s: float | None = None
    waited_s: float = 0.0


def companions(batch: Batch, expected: Sequence[Expected], batches: Collection[int], rules: Rules) -> list[Expected]:
    """Those about to send what may join this batch: the same kind of call with the same bucket as last time.

    A Backward also joins those whose Forward ran in one batch with its own; `batches` are the numbers of the batches in
    which this batch's students were answered last.
    """
    first = batch.jobs[0]
    kind = kind_of(first)
    if kind is None or first.bucket is None or not rules.merge:
        return []
    size, calls = area(batch.jobs), len(batch.jobs)
    found = []
    for each in expected:
        shares_graph = kind == "backward" and each.batch in batches
        is_wanted = (
            calls < rules.most_calls and size + each.tokens <= rules.enough_tokens and each.bucket == first.bucket
        )
        if each.kind == kind and (shares_graph or is_wanted) and size + each.tokens <= rules.batch_tokens:
            size, calls = size + each.tokens, calls + 1
            found.append(each)
    return found


def linger_s(joining: Sequence[Expected], in_turn: Sequence[Expected], outlook: Outlook, patience: Patience) -> float:
    """Seconds to hold a batch back from now; 0 to run it.

    A student that joins saves the start of another batch, so it is worth no longer a wait than that; while the start is not known
    the share alone bounds it. One whose turn it is saves itself the whole batch, and is waited for up to its own share of that.

    Args:
        joining: who is about to send what may join the batch, soonest first.
        in_turn: who is about to send what should run before it.
        outlook: the batch.
        patience: the bounds.
    """
    join_s, turn_s = patience.share * outlook.batch_s, patience.turn_share * outlook.batch_s
    if outlook.start_s is not None:
        join_s = min(join_s, outlook.start_s)
    options = [(number * join_s, each) for number, each in enumerate(joining, 1)]
    options += [(turn_s, each) for each in in_turn]
    best_s = hold_s = 0.0
    for worth_s, each in options:
        left_s = min(patience.limit_s, worth_s) - outlook.waited_s
        if left_s - each.in_s > best_s:
            best_s, hold_s = left_s - each.in_s, min(left_s, each.at_most_s)
    return hold_s if hold_s >= _LEAST_S else 0.0
