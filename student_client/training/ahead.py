"""Batches with what the teachers know about them, fetched while the step before runs; knows no method."""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, replace

import torch

from student_client.teachers.teachers import Teachers
from student_client.training.stream import Place, Stream
from task_data import Batch
from teaching_protocol.threads import side_threads

__all__ = ["Ahead"]

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class _Next:
    batch: Batch
    place: Place
    known: Mapping[int, Future[dict[str, torch.Tensor]]]


class Ahead:
    """A stream's batches, each with `known` filled in; the next batch is asked about before it is needed.

    Args:
        stream: of the training rows.
        teachers: asked in threads of their own, one each.
        wanted: output ports to observe, by the teacher's place.
    """

    def __init__(self, stream: Stream, teachers: Teachers, wanted: Mapping[int, tuple[str, ...]]) -> None:
        self._stream, self._teachers, self._wanted = stream, teachers, wanted
        self._next: _Next | None = None
        self._pool = side_threads(len(wanted), "observe") if wanted else None
        self.place = stream.place
        """Where the stream stands behind the last batch that `next` gave."""

    def go_to(self, place: Place) -> None:
        """Goes on behind `place`."""
        self.drain()
        self._stream.go_to(place)
        self.place = place

    def next(self, last: bool = False) -> Batch:
        """The next batch; with `last` none is asked about ahead.

        Raises:
            TeachingError: what the teacher answered when it was asked about this batch.
        """
        found = self._next or self._ask()
        self._next = None
        began = time.monotonic()
        known = {place: answer.result() for place, answer in found.known.items()}
        self._teachers.ahead_wait_s += time.monotonic() - began
        self.place = found.place
        if self._pool is not None and not last:
            self._next = self._ask()
        return replace(found.batch, known=known) if known else found.batch

    def drain(self) -> None:
        """Waits for what was asked ahead and lets it go."""
        if self._next is not None:
            for answer in self._next.known.values():
                answer.exception()
        self._next = None

    def close(self) -> None:
        """Ends the threads."""
        self.drain()
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None

    def _ask(self) -> _Next:
        batch = self._stream.next()
        asked: dict[int, Future[dict[str, torch.Tensor]]] = {}
        for place, ports in self._wanted.items():
            assert self._pool is not None, "closed"
            asked[place] = self._pool.submit(self._teachers[place].fetch, batch, ports)
        return _Next(batch, self._stream.place, asked)
