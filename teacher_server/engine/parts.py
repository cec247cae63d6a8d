"""A batch shared out among workers of one thread each, where that is faster than one team of threads; knows no request.

On a processor every operation that is cut in pieces for a team of threads loses some time at its end; two halves of a batch, each
in a thread of its own from beginning to end, lose nothing as long as they end together (ours; decision 0019).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from teaching_protocol.threads import side_threads

__all__ = ["Parts", "even_parts"]

_UNEVEN = 1.15  # the longest part over an even one: beyond it, the team is faster

Done = TypeVar("Done")
Thing = TypeVar("Thing")


def even_parts(groups: Sequence[Sequence[Thing]], weights: Sequence[float], count: int) -> list[list[Thing]]:
    """Shares groups out into `count` parts of about equal weight; all of them in one part where they are not even.

    A group stays whole. The heaviest goes first, each to the lightest part so far.
    """
    whole = [each for group in groups for each in group]
    if len(groups) < count or count < 2:
        return [whole]
    parts: list[list[int]] = [[] for _ in range(count)]
    loads = [0.0] * count
    for place in sorted(range(len(groups)), key=lambda place: -weights[place]):
        lightest = loads.index(min(loads))
        parts[lightest].append(place)
        loads[lightest] += weights[place]
    if max(loads) * count > _UNEVEN * sum(loads):
        return [whole]
    return [[each for place in sorted(part) for each in groups[place]] for part in parts]


class Parts:
    """So many workers of one thread each; none are started before they are needed."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._threads = side_threads(count, "engine-part")

    def run(self, work: Callable[[Sequence[Thing]], Done], parts: Sequence[Sequence[Thing]]) -> list[Done]:
        """Does the work of every part at once; in the caller's own thread if there is one part alone."""
        return list(self._threads.map(work, parts)) if len(parts) > 1 else [work(part) for part in parts]

    def close(self) -> None:
        """Ends the workers."""
        self._threads.shutdown()
