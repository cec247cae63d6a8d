"""A teacher with a real engine thread and no network, for tests of what runs when."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future
from typing import Any

from teacher_server.actor import TeacherActor, build_card
from teacher_server.config import ServerConfig
from teacher_server.jobs import Batch, Job
from teacher_server.live import LiveSettings
from teacher_server.local import make_engine
from teacher_server.metrics.metrics import Metrics
from teacher_server.models.split import FrozenTeacher
from teacher_server.scheduling.rhythm import kind_of
from teacher_server.scheduling.scheduler import ThreadScheduler
from teaching_protocol import verbs
from teaching_protocol.verbs import Call
from tests.calls import in_s

__all__ = ["Desk"]


class BucketedScheduler(ThreadScheduler):
    """Puts all calls of a kind into one bucket where the engine has named none."""

    def submit(self, job: Job) -> Future[Any]:
        if job.bucket is None:
            job.bucket = kind_of(job)
        return super().submit(job)


class Desk:
    """A teacher with an engine thread whose model waits while the door is shut, and that takes `busy_s` to start a batch."""

    def __init__(self, bert: FrozenTeacher, permits: int = 8, busy_s: float = 0.0, **settings: Any) -> None:
        config = ServerConfig(model="tiny", permits=permits, **settings)
        self.live, self.metrics = LiveSettings(config), Metrics()
        self.runs = 0
        self.door = threading.Event()
        self.door.set()
        self.busy = threading.Event()
        self._busy_s = busy_s
        engine = make_engine(config, self.metrics, bert)
        self._engine_run = engine.run
        engine.run = self._run  # type: ignore[method-assign]
        self.scheduler = BucketedScheduler(engine, self.live, self.metrics)
        self.actor = TeacherActor(build_card(engine, config), engine, self.scheduler, self.live, self.metrics)
        self._hook = bert.family.blocks[-1].register_forward_pre_hook(self._enter)
        self.scheduler.start()

    def close(self) -> None:
        self.door.set()
        self.scheduler.stop()
        self._hook.remove()

    def _run(self, batch: Batch) -> None:
        if batch.tokens:
            time.sleep(self._busy_s)
        self._engine_run(batch)

    def _enter(self, *_: Any) -> None:
        self.runs += 1
        self.busy.set()
        assert self.door.wait(20)

    def shut(self) -> None:
        self.door.clear()
        self.busy.clear()

    def count(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0

    def job(self, request: Any, call: Call | None = None) -> Job:
        session = next(each for each in self.actor.sessions.live() if each.id == request.session.session_id)
        rows = tokens = 0
        if isinstance(request, verbs.ForwardRequest | verbs.BackwardRequest):
            tensors = request.inputs if isinstance(request, verbs.ForwardRequest) else request.grads
            rows, length, _ = next(iter(tensors.values())).shape
            tokens = rows * length
        return Job(type(request).__name__.removesuffix("Request"), session, request, call or in_s(20), rows, tokens)
