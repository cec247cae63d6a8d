"""Lanes: each session's waiting jobs, strictly in order; knows neither who runs them nor who is next."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator

from teacher_server.jobs import Batch, Job

__all__ = ["Lanes"]


class Lanes:
    """The waiting jobs of all sessions. A lane without jobs is none; one whose job runs gives no other."""

    def __init__(self) -> None:
        self._lanes: OrderedDict[str, deque[Job]] = OrderedDict()
        self._running: set[str] = set()

    def __len__(self) -> int:
        return sum(map(len, self._lanes.values()))

    def __contains__(self, lane: str) -> bool:
        return lane in self._lanes

    def push(self, job: Job) -> None:
        """Puts a job at the end of its lane."""
        self._lanes.setdefault(job.lane, deque()).append(job)

    def heads(self) -> list[Job]:
        """The first job of every lane of which none runs."""
        return [lane[0] for name, lane in self._lanes.items() if name not in self._running]

    def take(self, batch: Batch) -> None:
        """Takes the jobs of a batch, each the first of its lane, to run them."""
        for job in batch.jobs:
            self._running.add(job.lane)
            self._pop(job.lane)

    def ran(self, batch: Batch) -> None:
        """The jobs of a batch are done: their lanes go on."""
        self._running.difference_update(job.lane for job in batch.jobs)

    def dead(self, now: float) -> Iterator[Job]:
        """Takes out and gives the jobs at the heads that nobody waits for any more."""
        for name, lane in list(self._lanes.items()):
            while lane and lane[0].is_dead(now):
                yield self._pop(name)

    def clear(self) -> list[Job]:
        """Takes out and gives all jobs."""
        jobs = [job for lane in self._lanes.values() for job in lane]
        self._lanes.clear()
        return jobs

    def _pop(self, name: str) -> Job:
        lane = self._lanes[name]
        job = lane.popleft()
        if not lane:
            del self._lanes[name]
        return job
