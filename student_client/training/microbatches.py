"""The microbatches of one step: begun early, finished in their order, each with random numbers of its own; knows no optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext

import torch

from student_client.methods import Outcome
from student_client.teachers.pausing import Pausing
from student_client.training.acceleration import RandomNumbers

__all__ = ["Line", "Microbatch"]

Autocast = Callable[[], AbstractContextManager[None]]


class Microbatch:
    """The forward of student and method on one batch: begun up to its first pause, finished when its turn has come.

    What goes wrong early is raised when it is finished, where it would have gone wrong without haste.

    Args:
        work: the batch and its loss, from the first tensor on.
        autocast: entered while it works.
        numbers: what it draws from; None draws from torch's generators as they stand.
    """

    def __init__(self, work: Pausing[Outcome], autocast: Autocast, numbers: RandomNumbers | None) -> None:
        self._work, self._autocast, self._numbers = work, autocast, numbers
        self._found: Outcome | None = None
        self._failed: Exception | None = None

    @property
    def is_paused(self) -> bool:
        """Whether it has begun and has more to do."""
        return self._found is None and self._failed is None

    def begin(self) -> None:
        """Works up to the first pause; raises nothing but what is no `Exception`."""
        try:
            self._go_on()
        except Exception as error:
            self._failed = error

    def finish(self) -> Outcome:
        """What comes of it, once it has begun.

        Raises:
            TeachingError: the teacher refuses or cannot go on, now or in `begin`.
        """
        if self._failed is not None:
            raise self._failed
        while self._found is None:
            self._go_on()
        found, self._found = self._found, None  # the graph is the caller's
        return found

    def close(self) -> None:
        """Lets go of what is not finished; harmless when repeated."""
        self._work.close()
        self._found = None

    def _go_on(self) -> None:
        """Works up to the next pause."""
        with ExitStack() as stack:
            stack.enter_context(self._numbers or nullcontext())
            stack.enter_context(torch.enable_grad())  # it may begin in the middle of another one's backward
            stack.enter_context(self._autocast())
            try:
                next(self._work)
            except StopIteration as end:
                self._found = end.value


class Line:
    """Microbatches in their order. Use as a context manager, which lets go of all that were not finished.

    Args:
        microbatches: of one step.
        ahead: whether they begin before their turn: the next one while a question is under way, and the one after it
            while a gradient is, so that the teacher has work while the student has, too.
    """

    def __init__(self, microbatches: Sequence[Microbatch], ahead: bool) -> None:
        self._all, self._ahead = microbatches, ahead
        self._begun = self._turn = 0

    def __iter__(self) -> Iterator[Microbatch]:
        for place, each in enumerate(self._all):
            self._turn = place
            self._begin(place + 1)
            if self._ahead and each.is_paused:
                self._begin(place + 2)
            yield each

    def look_ahead(self) -> None:
        """Begins the microbatch after the next one; for the time in which this one's gradient is under way."""
        self._begin(self._turn + 3)

    def __enter__(self) -> Line:
        return self

    def __exit__(self, *_: object) -> None:
        for each in self._all:
            each.close()

    def _begin(self, count: int) -> None:
        """Begins microbatches until so many have begun."""
        while self._begun < min(count, len(self._all)):
            self._begun += 1
            self._all[self._begun - 1].begin()
