"""The only room that runs the model: a batch in, and every job of it answered.

Several threads may be here: those that run the model, as many at once as the engine has cores to give out, and one whose jobs need
none (Step, Export, Import). A session's jobs are in one of them at a time, so that its codec, optimizer and calls have one owner.
Knows no queue and no network.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch

from teacher_server.config import ServerConfig
from teacher_server.engine.answers import Answers
from teacher_server.engine.backwards import Backwards
from teacher_server.engine.cohorts import GraphCache
from teacher_server.engine.earlier import at_work, known_reply
from teacher_server.engine.forwards import Forwards
from teacher_server.engine.knowledge import Knowledge
from teacher_server.engine.knowledge_cache import KnowledgeCache
from teacher_server.engine.steps import Steps, forget_calls
from teacher_server.engine.transfers import Arriving, Transfers
from teacher_server.faults import typed
from teacher_server.jobs import Batch, Job
from teacher_server.metrics.metrics import Metrics
from teacher_server.models.pauses import Pauses
from teacher_server.models.split import FrozenTeacher
from teacher_server.sessions import state
from teacher_server.sessions.replies import size_bytes
from teacher_server.sessions.sessions import Session
from teaching_protocol.errors import StepOutOfOrder
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

_LONG_TOKENS = 512  # a batch of fewer is over soon


class Engine:
    """Runs batches on one frozen teacher and keeps graphs and knowledge for it.

    Attributes:
        cores: what batches that run at the same time share: a processor's, or one, where the model is for one batch alone.
    """

    def __init__(self, teacher: FrozenTeacher, config: ServerConfig, metrics: Metrics) -> None:
        self.teacher = teacher
        self.pauses = Pauses()
        self.graphs = GraphCache(config.graph_cache_bytes, config.session_graph_bytes, metrics)
        cache = KnowledgeCache(config.knowledge_cache_bytes, metrics)
        rows = 1 if config.deterministic else max(1, config.batch_tokens // config.max_tokens)
        self._transfers = transfers = Transfers(teacher.device)
        knowledge = Knowledge(teacher, cache, transfers, batch_rows=rows, max_tokens=config.max_tokens)
        self.answers = Answers(teacher, knowledge, transfers, self.pauses)
        forwards = Forwards(teacher, self.answers, self.graphs, config.session_input_bytes)
        self._rooms: Mapping[type, Callable[[Sequence[Any]], Sequence[Any]]] = {
            ForwardRequest: forwards.run,
            BackwardRequest: Backwards(
                forwards, self.graphs, transfers, self.pauses, config.session_input_bytes, metrics
            ).run,
            StepRequest: Steps(self.graphs, transfers, metrics).run,
            ExportRequest: lambda asked: [self._export(*each) for each in asked],
            ImportRequest: lambda asked: [self._import(*each) for each in asked],
        }
        self._metrics = metrics
        self.cores = _cores(teacher, config)
        self._may_pause = teacher.device.type == "cpu" and not teacher.is_spread
        self._arriving: list[Arriving] = []

    def run(self, batch: Batch) -> None:
        """Runs the jobs of a batch as one and fills in every future, with a reply or an error."""
        self._metrics.batch_rows.observe(batch.rows)
        self._metrics.batch_tokens.observe(batch.tokens)
        clock = self.pauses.clock if batch.tokens else time.perf_counter
        started = clock()
        is_long = self._may_pause and batch.tokens >= _LONG_TOKENS
        with at_work(batch), self.pauses.opened() if is_long else nullcontext():
            outcomes = {job: self._fetching(outcome) for job, outcome in self._outcomes(batch.jobs).items()}
        self._charge(clock() - started, batch)
        for job in batch.jobs:
            job.run_again = _was_run_again(job)
            self._answer(job, outcomes[job])
        # the callers have their replies by now; an error in here must not end the thread that owns the model
        for job in batch.jobs:
            try:
                self._keep(job, outcomes[job])
            except Exception as error:
                typed(error, job.method)
        self._land_earlier(outcomes.values())
        if batch.tokens:  # what runs beside the model does not keep it busy
            self._metrics.busy_seconds.inc((clock() - started) * batch.cores / self.cores)

    def close(self) -> None:
        """Lets go of what the teacher has beside memory."""
        self.teacher.close()

    def _outcomes(self, jobs: Sequence[Job]) -> dict[Job, Any]:
        """A reply or an error for each job; autocast of a caller in this process is switched off."""
        with torch.autocast(self.teacher.device.type, enabled=False):
            return self._in_order(jobs)

    def _in_order(self, jobs: Sequence[Job]) -> dict[Job, Any]:
        """The replies of earlier calls first, then what is new, kind by kind."""
        outcomes: dict[Job, Any] = {}
        for job in jobs:
            try:
                known = known_reply(job)
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

    def _fetching(self, outcome: Any) -> Any:
        """The outcome, with its tensors being copied to the host."""
        if isinstance(outcome, ForwardReply):
            return dataclasses.replace(outcome, outputs=self._transfers.fetch(outcome.outputs))
        if isinstance(outcome, BackwardReply):
            return dataclasses.replace(outcome, grads=self._transfers.fetch(outcome.grads))
        return outcome

    def _land_earlier(self, outcomes: Iterable[Any]) -> None:
        """Copies the replies of the batch before out of pinned memory, where nobody has read them yet."""
        replies = [_tensors(each) for each in outcomes if isinstance(each, ForwardReply | BackwardReply)]
        if not replies:
            return  # a batch of the other thread, and the list is not its own
        for each in self._arriving:
            each.land()
        self._arriving = [each for each in replies if isinstance(each, Arriving)]

    def _charge(self, seconds: float, batch: Batch) -> None:
        """Charges each job, and its session, with its share of the batch's time: by tokens, or evenly where there are none."""
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
        if request.call_id and request.step != session.step:
            raise StepOutOfOrder(
                f"this Import was sent after step {request.step}, but the session is at step {session.step}; "
                "resume the session, then import"
            )
        state.import_state(session, request.state, self.teacher.model_hash)
        forget_calls(session, self.graphs)
        if request.call_id:
            session.rise(request.call_id)
        return ImportReply(session.step, session.ref)


def _cores(teacher: FrozenTeacher, config: ServerConfig) -> int:
    """A processor's threads, where neither bits nor kernels depend on how many of them a batch has; else one."""
    if teacher.device.type != "cpu" or teacher.is_spread or config.deterministic or config.compile:
        return 1
    return config.threads or torch.get_num_threads()


def _was_run_again(job: Job) -> bool:
    if job.session is None or not isinstance(job.request, BackwardRequest):
        return False
    call = job.session.calls.get(job.request.forward_id)
    return call is not None and call.run_again


def _tensors(reply: ForwardReply | BackwardReply | ImportReply) -> Tensors:
    if isinstance(reply, ImportReply):
        return {}
    return reply.outputs if isinstance(reply, ForwardReply) else reply.grads


def _asked(job: Job) -> Asked:
    assert job.session is not None, "jobs without a session do not reach the engine"
    return job.session, job.request
