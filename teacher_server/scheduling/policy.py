"""Who runs next, as a pure choice: values in, value out; no clock, no queue, no model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from teacher_server.jobs import Batch, Job
from teacher_server.scheduling.fairness import cost

__all__ = ["Rules", "Turn", "area", "next_batch"]

_UNFAIR = 1.25


@dataclass(frozen=True)
class Turn:
    """A lane's first job, what the lane has been charged so far, and whether it must run alone.

    `batch` numbers the batch that a Backward shares a graph with; 0 for none.
    """

    job: Job
    counter: float = 0.0
    alone: bool = False
    batch: int = 0


@dataclass(frozen=True)
class Rules:
    """What a batch may be.

    Attributes:
        batch_tokens: padded tokens of a batch; a single job may have more.
        free_tokens: tokens that cost as much as starting a batch at all; below it the device is not busy.
        merge: whether jobs of several lanes share a batch.
        most_calls: of a batch, so that others at the same time have some, too.
        enough_tokens: padded tokens beyond which a batch gains nothing by more. These two are not for Backwards of one graph.
    """

    batch_tokens: int
    free_tokens: float = 0.0
    merge: bool = True
    most_calls: float = math.inf
    enough_tokens: float = math.inf


def next_batch(turns: Sequence[Turn], rules: Rules) -> Batch:
    """Chooses among the first jobs of all lanes; at least one is given.

    First is the lane that was charged least, then who came first. What frees memory goes before every new Forward while its
    lane is ahead by no more than this very job. Lanes of the same bucket join in the same order, each if (1) the padded batch
    stays within its budget, (2) it is not ahead of the first by more than the budget, (3) the batch takes at most 1.25 times as
    long as if everybody in it had sent what the first one did: a large call does not ride along with a small one, and (4) there
    are not enough of them yet.
    """
    floor = min(turn.counter for turn in turns)
    order = sorted(turns, key=lambda turn: (not _goes_before(turn, floor), turn.counter, turn.job.born))
    first = order[0]
    if not rules.merge or first.alone or first.job.bucket is None:
        return Batch((first.job,))
    jobs = [first.job]
    for turn in order[1:]:
        if _may_join(turn, first, jobs, rules):
            jobs.append(turn.job)
    return Batch(tuple(jobs))


def area(jobs: Sequence[Job]) -> int:
    """Padded tokens of a batch: all its rows times the longest row."""
    return sum(job.rows for job in jobs) * max(map(_length, jobs), default=0)


def _length(job: Job) -> int:
    return -(-job.tokens // job.rows) if job.rows else 0


def _goes_before(turn: Turn, floor: float) -> bool:
    return turn.job.frees_memory and turn.counter <= floor + cost(turn.job)


def _may_join(turn: Turn, first: Turn, jobs: Sequence[Job], rules: Rules) -> bool:
    if turn.alone or turn.job.bucket != first.job.bucket:
        return False
    together = area([*jobs, turn.job])
    if (len(jobs) >= rules.most_calls or together > rules.enough_tokens) and not (
        turn.batch and turn.batch == first.batch
    ):
        return False
    fair = rules.free_tokens + (len(jobs) + 1) * max(1, area([first.job]))
    return (
        together <= rules.batch_tokens
        and turn.counter <= first.counter + rules.batch_tokens
        and rules.free_tokens + together <= _UNFAIR * fair
    )
