"""Work that pauses while a teacher's answer is under way, so that other work can be done; knows no teacher."""

from __future__ import annotations

from collections.abc import Callable, Generator
from concurrent.futures import Executor, Future, wait
from dataclasses import dataclass
from typing import Generic, TypeVar

__all__ = ["Begun", "Overlap", "Pausing", "finished"]

T = TypeVar("T")

Pausing = Generator[None, None, T]
"""Yields where it would wait for a call that is under way, and gives T in the end. Whoever does not care goes on at once."""


def finished(work: Pausing[T]) -> T:
    """What the work gives, its pauses passed over."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            found: T = end.value
            return found


@dataclass(frozen=True)
class Overlap:
    """How calls and the student's own work overlap: threads for the calls, and what is done while a Backward is under way."""

    threads: Executor
    meanwhile: Callable[[], None]


class Begun(Generic[T]):
    """A job that another thread is at. Called, it waits for what comes of it; called again, it does the job anew.

    Args:
        job: harmless to repeat.
        threads: where it begins now.
        counts: whether what came of it is of use; if not, it is done anew in the caller's thread.
    """

    def __init__(self, job: Callable[[], T], threads: Executor, counts: Callable[[], bool] = lambda: True) -> None:
        self._job, self._counts = job, counts
        self._first: Future[T] | None = threads.submit(job)

    def __call__(self) -> T:
        """What comes of the job."""
        first, self._first = self._first, None
        if first is None:
            return self._job()
        wait([first])
        return first.result() if self._counts() else self._job()
