"""From many callers to the one engine thread: permits, lanes, dispatch; runs no model itself.

A lane is one session's jobs, taken strictly in order. Nothing here is unbounded: a call without
a permit is refused at once.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from concurrent.futures import Future
from typing import Any, Protocol

import torch

from teacher_server.engine import Engine
from teacher_server.jobs import Batch, Job
from teacher_server.metrics import Metrics
from teacher_server.policy import next_batch
from teaching_protocol.errors import CallCancelled, DeadlineExceeded, Draining, Overloaded

__all__ = ["InlineScheduler", "Scheduler", "ThreadScheduler"]


class Scheduler(Protocol):
    """Takes a job and sees to it that its future is filled in."""

    @property
    def draining(self) -> bool:
        """Whether nothing new is begun."""
        ...

    def submit(self, job: Job) -> Future[Any]:
        """Takes the job; its future is filled in now or later."""
        ...


class InlineScheduler:
    """Runs each job at once in the caller's thread: the teacher in one's own process."""

    draining = False

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = threading.Lock()

    def submit(self, job: Job) -> Future[Any]:
        """Runs the job; the future is done when this returns."""
        with self._lock:
            self._engine.run(Batch((job,)))
        return job.future


class ThreadScheduler:
    """One engine thread fed from bounded lanes."""

    def __init__(self, engine: Engine, permits: int, threads: int, metrics: Metrics) -> None:
        self._engine = engine
        self._permits = permits
        self._threads = threads
        self._metrics = metrics
        self._changed = threading.Condition()
        self._lanes: OrderedDict[str, deque[Job]] = OrderedDict()
        self._held = 0
        self._mean_s = 0.05
        self._draining = self._stopped = False
        self._thread = threading.Thread(target=self._loop, name="engine", daemon=True)

    def start(self) -> None:
        """Starts the engine thread."""
        self._thread.start()

    @property
    def draining(self) -> bool:
        """Whether nothing new is begun; what finishes a step, and Export, still goes."""
        return self._draining

    def submit(self, job: Job) -> Future[Any]:
        """Queues a job.

        Raises:
            Draining: the server begins nothing new.
            Overloaded: every permit is taken; says when to come back.
        """
        with self._changed:
            if self._stopped or (self._draining and job.begins):
                raise Draining("the server is shutting down; export your state and enrol elsewhere")
            if self._held >= self._permits:
                raise Overloaded(
                    f"all {self._permits} permits are taken; try again later", max(0.05, self._held * self._mean_s / 4)
                )
            self._held += 1
            self._lanes.setdefault(job.lane, deque()).append(job)
            self._metrics.in_flight.set(self._held)
            self._changed.notify()
        return job.future

    def drain(self, limit_s: float) -> bool:
        """Begins nothing new and waits for the admitted jobs; false if the limit came first."""
        with self._changed:
            self._draining = True
            return self._changed.wait_for(lambda: self._held == 0, limit_s)

    def stop(self) -> None:
        """Ends the engine thread after the batch it runs; what still waits is refused."""
        with self._changed:
            self._draining = self._stopped = True
            self._changed.notify_all()
        self._thread.join()

    def _loop(self) -> None:
        if self._threads:
            torch.set_num_threads(self._threads)
        while (batch := self._next()) is not None:
            started = time.monotonic()
            for job in batch.jobs:
                job.timing.queue_s = started - job.born
                self._metrics.queue_seconds.labels(job.method).observe(job.timing.queue_s)
            self._engine.run(batch)
            self._mean_s += 0.1 * (time.monotonic() - started - self._mean_s)
            self._release(len(batch.jobs))

    def _next(self) -> Batch | None:
        with self._changed:
            while True:
                self._drop_dead()
                heads = [lane[0] for lane in self._lanes.values()]
                if heads and not self._stopped:
                    batch = next_batch(heads)
                    for job in batch.jobs:
                        self._pop(job)
                    return batch
                if self._stopped:
                    self._refuse_all()
                    return None
                self._changed.wait()

    def _drop_dead(self) -> None:
        """Takes out jobs nobody waits for, before they reach the device."""
        now = time.monotonic()
        for lane in list(self._lanes.values()):
            while lane and lane[0].is_dead(now):
                job = lane[0]
                self._pop(job)
                cancelled = job.call.cancelled.is_set()
                self._metrics.rejected.labels("cancelled" if cancelled else "expired").inc()
                gone = (
                    CallCancelled("the caller went away")
                    if cancelled
                    else DeadlineExceeded("the deadline passed in the queue")
                )
                job.future.set_exception(gone)
                self._release(1)

    def _pop(self, job: Job) -> None:
        lane = self._lanes[job.lane]
        lane.popleft()
        if not lane:
            del self._lanes[job.lane]

    def _refuse_all(self) -> None:
        for lane in list(self._lanes.values()):
            for job in lane:
                job.future.set_exception(Draining("the server shut down before this call ran"))
        self._lanes.clear()

    def _release(self, count: int) -> None:
        with self._changed:
            self._held -= count
            self._metrics.in_flight.set(self._held)
            self._changed.notify_all()
