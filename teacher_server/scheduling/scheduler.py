"""From many callers to the engine's threads: permits, lanes, dispatch; runs no model itself.

Those that run the model share its cores; one more does what needs a session's codec alone (Step, Export, Import) and waits for no
batch of other students. A lane is one session's jobs, taken strictly in order, by whichever thread. Nothing here is unbounded: a
call without a permit is refused at once.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, Protocol

import torch

from teacher_server.engine.engine import Engine
from teacher_server.faults import typed
from teacher_server.jobs import Batch, Job
from teacher_server.live import LiveSettings
from teacher_server.metrics.metrics import Metrics
from teacher_server.scheduling.admission import Admission
from teacher_server.scheduling.lanes import Lanes
from teacher_server.scheduling.order import Choice, Order
from teacher_server.scheduling.rhythm import kind_of
from teaching_protocol.errors import CallCancelled, DeadlineExceeded, Draining, Overloaded
from teaching_protocol.threads import compute_with

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

    def permit(self, lane: str, student: str) -> AbstractContextManager[None]:
        """A permit for work that needs no engine, held in the block."""
        ...

    def forget(self, lane: str) -> None:
        """Forgets everything about the lane of a session that has ended."""
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

    def permit(self, lane: str, student: str) -> AbstractContextManager[None]:
        """Needs none: there is no other caller."""
        return nullcontext()

    def forget(self, lane: str) -> None:
        """Nothing is known of lanes."""


class ThreadScheduler:
    """The engine's threads, fed from bounded lanes."""

    def __init__(self, engine: Engine, live: LiveSettings, metrics: Metrics) -> None:
        self._engine = engine
        self._threads = live.now.threads or torch.get_num_threads()
        self._metrics = metrics
        lock = threading.RLock()
        self._changed, self._short_changed = threading.Condition(lock), threading.Condition(lock)
        self._lanes = Lanes()
        self._admission = Admission(live)
        self._order = Order(live, metrics, self._admission, engine.cores)
        self._held_since: float | None = None  # when a batch began to be held back
        self._running: list[Batch] = []
        self._mine = threading.local()  # its `batch` is the one that a thread runs
        self._idle = set(range(self._order.at_once))
        if live.now.step_aside:
            engine.pauses.go_first = self._step_aside
        self._draining = self._stopped = False
        work = {f"engine-{place}": partial(self._next, place) for place in self._idle} | {
            "engine-steps": self._next_short
        }
        self._workers = [
            threading.Thread(target=self._loop, args=(choose,), name=name, daemon=True) for name, choose in work.items()
        ]

    def start(self) -> None:
        """Starts the engine's threads."""
        for each in self._workers:
            each.start()

    @property
    def draining(self) -> bool:
        """Whether nothing new is begun; what finishes a step, and Export, still goes."""
        return self._draining

    def refusal(self) -> Overloaded | None:
        """Why any work would be refused now, or None; a look without the lock, for the door."""
        return self._admission.refusal()

    def waiting(self, now: float) -> tuple[int, float]:
        """How many jobs wait, and for how many seconds the first of them has."""
        with self._changed:
            return len(self._lanes), max((now - job.born for job in self._lanes.heads()), default=0.0)

    def submit(self, job: Job) -> Future[Any]:
        """Queues a job.

        Raises:
            Draining: the server begins nothing new; a session with a call under way goes on to the end of its step.
            Overloaded: every permit is taken; says when to come back. QuotaExceeded: it is the student's own share.
            Quarantined: the student's calls failed too often.
        """
        with self._changed:
            if self._stopped or (self._draining and job.begins and not self._order.under_way[job.lane]):
                raise Draining("the server is shutting down; export your state and enrol elsewhere")
            now = time.monotonic()
            self._order.check(job, now)
            student, owner = (job.session.account, job.session.owner) if job.session is not None else ("", "")
            self._admission.enter(job.lane, student, job.tokens, now, owner)
            self._order.arrived(job, now)
            self._lanes.push(job)
            self._metrics.in_flight.set(self._admission.held)
            (self._short_changed if kind_of(job) is None else self._changed).notify_all()
        job.future.add_done_callback(partial(self._done, job))
        return job.future

    @contextmanager
    def permit(self, lane: str, student: str) -> Iterator[None]:
        """A permit for work that needs no engine, held in the block.

        Raises:
            Overloaded: every permit is taken. QuotaExceeded: the student's own share is.
        """
        with self._changed:
            self._admission.enter(lane, student, 0.0, time.monotonic())
        try:
            yield
        finally:
            self._leave(lane)

    def forget(self, lane: str) -> None:
        """Forgets everything about the lane of a session that has ended."""
        with self._changed:
            self._admission.forget(lane)
            self._order.forget(lane)

    def drain(self, limit_s: float) -> bool:
        """Begins nothing new and waits for the admitted jobs; false if the limit came first."""
        with self._changed:
            self._draining = True
            self._changed.notify_all()
            return self._changed.wait_for(lambda: self._admission.held == 0, limit_s)

    def stop(self) -> None:
        """Ends the engine's threads after the batches they run; what still waits is refused."""
        with self._changed:
            self._draining = self._stopped = True
            self._changed.notify_all()
            self._short_changed.notify_all()
        for each in self._workers:
            each.join()
        self._refuse_all()

    def _loop(self, choose: Callable[[], Batch | None]) -> None:
        threads = 0
        while (batch := choose()) is not None:
            wanted = self._threads_of(batch)
            if wanted != threads:
                compute_with(wanted)
                threads = wanted
            self._mine.batch = batch
            self._run(batch)

    def _threads_of(self, batch: Batch) -> int:
        if kind_of(batch.jobs[0]) is None:
            return 1
        return batch.cores if self._engine.cores > 1 else self._threads

    def _step_aside(self, done: float) -> None:
        """In a pause of a long batch: runs a short one that would have gone first, if one has come."""
        with self._changed:
            self._drop_dead()
            choice = self._order.aside(self._heads(short=False), self._mine.batch, done)
            if choice is None:
                return
            batch = self._taken(choice, 0.0)
        self._metrics.asides.inc()
        self._run(batch)

    def _run(self, batch: Batch) -> None:
        clock = time.perf_counter if kind_of(batch.jobs[0]) is None else self._engine.pauses.clock
        now, started = time.monotonic(), clock()
        for job in batch.jobs:
            job.timing.queue_s = now - job.born
            self._metrics.queue_seconds.labels(job.method).observe(job.timing.queue_s)
        try:
            self._engine.run(batch)
        except Exception as error:  # an error in there must not end this thread
            for job in batch.jobs:
                if not job.future.done():
                    job.future.set_exception(typed(error, job.method))
        seconds = clock() - started
        with self._changed:
            if batch in self._running:  # not one in a pause of another
                self._running.remove(batch)
                self._idle.add(self._mine.place)
            self._order.ran(batch, seconds)
            self._admission.learn(seconds / len(batch.jobs) * batch.cores / self._engine.cores)
            self._lanes.ran(batch)
            if len(self._lanes):
                self._changed.notify_all()
                self._short_changed.notify_all()

    def _next(self, place: int) -> Batch | None:
        """The next batch for the model; waits for one, and holds it back where that pays. None: the scheduler was stopped.

        Of several idle threads the first is asked, so that the same few are at work.
        """
        self._mine.place = place
        with self._changed:
            while not self._stopped:
                heads = self._heads(short=False)
                if not heads:
                    self._held_since = None
                if not heads or place > min(self._idle) or self._are_cores_taken():
                    self._changed.wait()
                    continue
                now = time.monotonic()
                waited_s = 0.0 if self._held_since is None else now - self._held_since
                choice = self._order.choose(heads, waited_s, now, self._running)
                if choice.hold_s > 0 and not self._draining:
                    self._held_since = now - waited_s
                    self._changed.wait(choice.hold_s)
                    continue
                self._held_since = None
                self._running.append(choice.batch)
                self._idle.remove(place)
                if self._idle and len(self._lanes):
                    self._changed.notify_all()
                return self._taken(choice, waited_s)
            return None

    def _are_cores_taken(self) -> bool:
        return sum(batch.cores for batch in self._running) >= self._engine.cores

    def _next_short(self) -> Batch | None:
        """The next work that needs no model; waits for some. None: the scheduler was stopped."""
        with self._short_changed:
            while not self._stopped:
                heads = self._heads(short=True)
                if heads:
                    return self._taken(self._order.choose(heads, 0.0, time.monotonic()), 0.0)
                self._short_changed.wait()
            return None

    def _heads(self, *, short: bool) -> list[Job]:
        self._drop_dead()
        return [job for job in self._lanes.heads() if (kind_of(job) is None) is short]

    def _taken(self, choice: Choice, waited_s: float) -> Batch:
        self._lanes.take(choice.batch)
        self._order.take(choice, waited_s)
        return choice.batch

    def _done(self, job: Job, future: Future[Any]) -> None:
        """After any answer to a job: gives its permit back, and learns how long it took and whether it failed."""
        error = future.exception()
        ran = not isinstance(error, CallCancelled | DeadlineExceeded | Draining)
        with self._changed:
            self._order.done(job, error, ran, time.monotonic())
            if job.session is not None and job.session.closed:
                self.forget(job.lane)
        self._leave(job.lane)

    def _leave(self, lane: str) -> None:
        with self._changed:
            self._admission.leave(lane)
            self._metrics.in_flight.set(self._admission.held)
            self._changed.notify_all()

    def _drop_dead(self) -> None:
        """Answers jobs nobody waits for, before they reach the device."""
        for job in self._lanes.dead(time.monotonic()):
            cancelled = job.call.cancelled.is_set()
            self._metrics.rejected.labels("cancelled" if cancelled else "expired").inc()
            job.future.set_exception(
                CallCancelled("the caller went away")
                if cancelled
                else DeadlineExceeded("the deadline passed in the queue")
            )

    def _refuse_all(self) -> None:
        with self._changed:
            left = self._lanes.clear()
        for job in left:
            job.future.set_exception(Draining("the server shut down before this call ran"))
