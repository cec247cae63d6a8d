"""Fairness by work: what each lane has been charged, in tokens over its weight; knows no clock and no queue.

The virtual token counter of Sheng et al. (2024, "Fairness in Serving Large Language Models", arXiv 2401.00588): who has
been served the least is next, and a lane that was idle is lifted to the others, so that it banks no credit. Ours is what
follows from closed loops: a student that is known to be about to call again is no idle one, and keeps a bounded credit
for the moments in which it thinks.
"""

from __future__ import annotations

from collections.abc import Collection

from teacher_server.jobs import Job

__all__ = ["Counters", "cost"]

_PARAMETERS_A_TOKEN = 1024  # of a codec that is stepped, exported or imported
_LEAST = 16.0
_CREDIT_CALLS = 2


def cost(job: Job) -> float:
    """Tokens a job is charged: its own, or a little for each of the codec's parameters where it runs no model."""
    if job.tokens or job.session is None:
        return float(job.tokens)
    parameters = sum(parameter.numel() for parameter in job.session.parameters())
    return max(_LEAST, parameters / _PARAMETERS_A_TOKEN)


class Counters:
    """Charged tokens over weight, a lane.

    Args:
        credit: how far behind `level` a lane may start at most that is known to be at work.

    Attributes:
        level: the highest counter of any lane when it was its turn; it never falls.
    """

    def __init__(self, credit: float) -> None:
        self.level = 0.0
        self._credit = credit
        self._charged: dict[str, float] = {}
        self._latest: dict[str, float] = {}  # what each was charged last

    def __len__(self) -> int:
        return len(self._charged)

    def of(self, lane: str) -> float:
        """Where a lane stands; one that is not known stands at the level."""
        return self._charged.get(lane, self.level)

    def arrive(self, lane: str, at_work: bool, others: Collection[str] = ()) -> None:
        """A lane without jobs has one again: lifts its counter.

        Who is at work keeps a credit of two of the largest calls here: enough for the turns that it missed while it thought, and
        too little to hold up for long those that were served while nobody else was there. Who comes from idleness has none.

        Args:
            at_work: whether it came back as soon as it was expected to.
            others: lanes with jobs.
        """
        credit = 0.0
        if at_work:
            largest = max(self._latest.get(each, 0.0) for each in (lane, *others))
            credit = min(self._credit, _CREDIT_CALLS * largest)
        self._charged[lane] = max(self.of(lane), self.level - credit)

    def turn(self, lane: str) -> None:
        """It was this lane's turn: whoever comes from idleness starts where it stands."""
        self.level = max(self.level, self.of(lane))

    def charge(self, lane: str, tokens: float, weight: float) -> None:
        """Adds served tokens to a lane."""
        self._latest[lane] = tokens / weight
        self._charged[lane] = self.of(lane) + self._latest[lane]

    def forget(self, lane: str) -> None:
        """A lane has ended."""
        self._charged.pop(lane, None)
        self._latest.pop(lane, None)
