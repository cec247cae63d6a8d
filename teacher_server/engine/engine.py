"""The only room that runs the model: a batch in, and every job of it answered.

Everything here happens in one thread at a time, so that a session's codec, optimizer and calls
have one owner. Knows no queue and no network.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch

from teacher_server import state
from teacher_server.config import ServerConfig
from teacher_server.engine.answers import Answers
from teacher_server.engine.backwards import Backwards
from teacher_server.engine.cohorts import GraphCache
from teacher_server.engine.forwards import Forwards
from teacher_server.engine.knowledge import Knowledge
from teacher_server.engine.knowledge_cache import KnowledgeCache
from teacher_server.engine.steps import Steps, forget_calls
from teacher_server.engine.transfers import Arriving, Transfers
from teacher_server.faults import typed
from teacher_server.jobs import Batch, Job
from teacher_server.metrics import Metrics
from teacher_server.replies import size_bytes
from teacher_server.sessions import Session
from teacher_server.split import FrozenTeacher
from teaching_protocol.errors import CallConflict, SessionNotFound, StaleEpoch
from teaching_protocol.verbs import (
    BackwardReply,
    BackwardRequest,
    ExportReply,
    ExportRequest,
    ForwardReply,
    ForwardRequest,
    ImportReply,
    ImportRequest,
    StepRequest,
    Tensors,
)

__all__ = ["Engine"]

Asked = tuple[Session, Any]  # and its request


class Engine:
    """Runs batches on one frozen teacher and keeps graphs and knowledge for it."""

    def __init__(self, teacher: FrozenTeacher, config: ServerConfig, metrics: Metrics) -> None:
        self.teacher = teacher
        self.graphs = GraphCache(config.graph_cache_bytes, config.session_graph_bytes, metrics)
        cache = KnowledgeCache(config.knowledge_cache_bytes, metrics)
        rows = 1 if config.deterministic else max(1, config.batch_tokens // config.max_tokens)
        self._transfers = transfers = Transfers(teacher.device)
        knowledge = Knowledge(teacher, cache, transfers, batch_rows=rows, max_tokens=config.max_tokens)
        self.answers = Answers(teacher, knowledge, transfers)
        forwards = Forwards(teacher, self.answers, self.graphs, config.session_input_bytes)
        self._rooms: Mapping[type, Callable[[Sequence[Any]], Sequence[Any]]] = {
            ForwardRequest: forwards.run,
            BackwardRequest: Backwards(forwards, self.graphs, transfers, config.session_input_bytes, metrics).run,
            StepRequest: Steps(self.graphs, transfers, metrics).run,
            ExportRequest: lambda asked: [self._export(*each) for each in asked],
            ImportRequest: lambda asked: [self._import(*each) for each in asked],
        }
        self._metrics = metrics
        self._arriving: list[Arriving] = []

    def run(self, batch: Batch) -> None:
        """Runs the jobs of a batch as one and fills in every future, with a reply or an error."""
        self._metrics.batch_rows.observe(batch.rows)
        self._metrics.batch_tokens.observe(batch.tokens)
        started = time.perf_counter()
        with torch.autocast(self.teacher.device.type, enabled=False):  # whatever a caller in this process trains in
            outcomes = self._outcomes(batch.jobs)
        outcomes = {job: self._homeward(outcome) for job, outcome in outcomes.items()}
        self._share_out(time.perf_counter() - started, batch)
        for job in batch.jobs:
            self._answer(job, outcomes[job])
        # while the replies travel; the thread that owns the model must outlive whatever happens here
        for job in batch.jobs:
            try:
                self._keep(job, outcomes[job])
            except Exception as error:
                typed(error, job.method)
        self._land(outcomes.values())
        self._metrics.busy_seconds.inc(time.perf_counter() - started)

    def _outcomes(self, jobs: Sequence[Job]) -> dict[Job, Any]:
        """A reply or an error for each job: those of earlier calls first, then what is new, kind by kind."""
        outcomes: dict[Job, Any] = {}
        for job in jobs:
            try:
                known = _known(job)
            except Exception as error:
                known = error
            if known is not None:
                outcomes[job] = known
        for kind, run in self._rooms.items():
            new = [job for job in jobs if isinstance(job.request, kind) and job not in outcomes]
            if new:
                outcomes |= zip(new, self._together(run, new), strict=True)
        return outcomes

    def _together(self, run: Callable[[Sequence[Asked]], Sequence[Any]], jobs: Sequence[Job]) -> Sequence[Any]:
        """Runs jobs as one. If that fails for all, each is run again alone, and only the culprit hears of it."""
        try:
            return run([_asked(job) for job in jobs])
        except Exception as error:
            if isinstance(error, torch.OutOfMemoryError):
                self.graphs.clear()
            elif len(jobs) == 1:
                return [error]
        if len(jobs) > 1:
            self._metrics.batch_retries.inc()
            outcomes = [self._together(run, [job])[0] for job in jobs]
            self._metrics.batch_culprits.inc(sum(isinstance(each, Exception) for each in outcomes))
            return outcomes
        try:
            return run([_asked(jobs[0])])  # once more, now that the graphs are gone
        except torch.OutOfMemoryError as error:
            return [error.with_traceback(None)]  # whose frames would hold what the next job needs
        except Exception as error:
            return [error]

    def _homeward(self, outcome: Any) -> Any:
        """The outcome, its tensors on their way to the host."""
        if isinstance(outcome, ForwardReply):
            return dataclasses.replace(outcome, outputs=self._transfers.fetch(outcome.outputs))
        if isinstance(outcome, BackwardReply):
            return dataclasses.replace(outcome, grads=self._transfers.fetch(outcome.grads))
        return outcome

    def _land(self, outcomes: Iterable[Any]) -> None:
        """Sees to it that replies of the batch before are out of pinned memory, if nobody has read them."""
        for each in self._arriving:
            each.land()
        replies = [_tensors(each) for each in outcomes if isinstance(each, ForwardReply | BackwardReply)]
        self._arriving = [each for each in replies if isinstance(each, Arriving)]

    def _share_out(self, seconds: float, batch: Batch) -> None:
        """Tells each job, and its session, its share of the time: by tokens, or evenly where there are none."""
        for job in batch.jobs:
            share = job.tokens / batch.tokens if batch.tokens else 1 / len(batch.jobs)
            job.timing.compute_s = seconds * share
            self._metrics.compute_seconds.labels(job.method).observe(job.timing.compute_s)
            if job.session is not None:
                job.session.usage.ran(job.timing.queue_s, job.timing.compute_s)

    def _answer(self, job: Job, outcome: Any) -> None:
        if isinstance(outcome, Exception):
            job.future.set_exception(typed(outcome, job.method))
        else:
            job.future.set_result(outcome)

    def _keep(self, job: Job, outcome: Any) -> None:
        """Keeps the reply of a call that has an effect, for its repeat."""
        session, request = job.session, job.request
        if session is None or isinstance(outcome, Exception) or not job.has_effect:
            return
        if request.call_id not in session.replies:
            tensors = _tensors(outcome)
            size = tensors.size_bytes if isinstance(tensors, Arriving) else size_bytes(tensors)
            session.replies.keep(request.call_id, job.mark, outcome, size)

    def _export(self, session: Session, request: ExportRequest) -> ExportReply:
        return ExportReply(state.export_state(session, self.teacher.model_hash), session.step)

    def _import(self, session: Session, request: ImportRequest) -> ImportReply:
        state.import_state(session, request.state, self.teacher.model_hash)
        forget_calls(session, self.graphs)
        return ImportReply(session.step)


def _known(job: Job) -> Any | None:
    """The reply that this very call got before, or None for a new one.

    Raises:
        SessionNotFound, StaleEpoch: the session is not the caller's any more.
        CallConflict: the id was used before for another call, or its reply was let go.
    """
    session, request = job.session, job.request
    assert session is not None, "jobs without a session do not reach the engine"
    if session.closed:
        raise SessionNotFound("the session ended while this call waited")
    if request.session.epoch != session.epoch:
        raise StaleEpoch("the session was resumed by another client while this call waited")
    if not job.has_effect:
        return None
    if request.call_id in session.replies:
        return session.replies.find(request.call_id, job.mark)
    if isinstance(request, ForwardRequest) and request.call_id in session.calls:
        raise CallConflict(
            f"Forward {request.call_id!r} was made before and its reply was let go; give each call an id of its own"
        )
    return None


def _tensors(reply: ForwardReply | BackwardReply) -> Tensors:
    return reply.outputs if isinstance(reply, ForwardReply) else reply.grads


def _asked(job: Job) -> Asked:
    assert job.session is not None, "jobs without a session do not reach the engine"
    return job.session, job.request
