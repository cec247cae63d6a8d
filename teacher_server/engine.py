"""The only room that runs the model: forward, backward and step of one batch.

Everything here happens in one thread at a time, so that a session's codec, optimizer and calls
have one owner. Knows no queue and no network.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from itertools import chain
from typing import Any

import torch

from teacher_server import state
from teacher_server.answers import Answers
from teacher_server.cohorts import Cohort, GraphCache, storage_place, weigh_graph
from teacher_server.config import ServerConfig
from teacher_server.faults import typed
from teacher_server.jobs import Batch, Job
from teacher_server.knowledge import Knowledge
from teacher_server.knowledge_cache import KnowledgeCache
from teacher_server.metrics import Metrics
from teacher_server.replies import fingerprint
from teacher_server.sessions import OpenCall, Session
from teacher_server.split import FrozenTeacher
from teaching_protocol.errors import (
    CallConflict,
    CallFinished,
    InputsNeeded,
    InvalidTensor,
    NonFiniteError,
    SessionNotFound,
    StaleCall,
    StaleEpoch,
    StepOutOfOrder,
    UnknownCall,
)
from teaching_protocol.verbs import (
    BackwardReply,
    BackwardRequest,
    ExportReply,
    ExportRequest,
    ForwardReply,
    ForwardRequest,
    ImportReply,
    ImportRequest,
    StepReply,
    StepRequest,
    Tensors,
)

__all__ = ["Engine"]


class Engine:
    """Runs batches on one frozen teacher and keeps graphs and knowledge for it."""

    def __init__(self, teacher: FrozenTeacher, config: ServerConfig, metrics: Metrics) -> None:
        self.teacher = teacher
        self.graphs = GraphCache(config.graph_cache_bytes, config.session_graph_bytes, metrics)
        cache = KnowledgeCache(config.knowledge_cache_bytes, metrics)
        rows = 1 if config.deterministic else max(1, config.batch_tokens // config.max_tokens)
        knowledge = Knowledge(teacher, cache, batch_rows=rows, max_tokens=config.max_tokens)
        self.answers = Answers(teacher, knowledge)
        self._weights = frozenset(map(storage_place, chain(teacher.model.parameters(), teacher.model.buffers())))
        self._config = config
        self._metrics = metrics

    def run(self, batch: Batch) -> None:
        """Runs every job of a batch and fills in its future, with a reply or an error."""
        self._metrics.batch_rows.observe(batch.rows)
        self._metrics.batch_tokens.observe(batch.tokens)
        for job in batch.jobs:
            started = time.perf_counter()
            try:
                reply = self._retried(job)
            except Exception as error:
                job.future.set_exception(typed(error, job.method))
                continue
            finally:
                job.timing.compute_s = time.perf_counter() - started
                self._metrics.compute_seconds.labels(job.method).observe(job.timing.compute_s)
            job.future.set_result(reply)
            try:  # while the reply travels; the thread that owns the model must outlive whatever happens here
                self._keep(job.session, job.request, reply)
            except Exception as error:
                typed(error, job.method)

    def _retried(self, job: Job) -> Any:
        """Runs a job, once more with all graphs let go when the device has no room."""
        try:
            return self._reply(job)
        except torch.OutOfMemoryError:
            self.graphs.clear()
            return self._reply(job)

    def _reply(self, job: Job) -> Any:
        """The reply of a job; one that repeats an earlier call gets the earlier reply."""
        session, request = _checked(job), job.request
        if not isinstance(request, ForwardRequest | BackwardRequest):
            return self._control(session, request)
        if isinstance(request, ForwardRequest) and not request.backward_follows:
            return self._forward(session, request)
        if request.call_id in session.replies:
            return session.replies.find(request.call_id, fingerprint(request))
        if isinstance(request, ForwardRequest) and request.call_id in session.calls:
            raise CallConflict(
                f"Forward {request.call_id!r} was made before and its reply was let go; give each call an id of its own"
            )
        if isinstance(request, ForwardRequest):
            return self._forward(session, request)
        return self._backward(session, request)

    def _keep(self, session: Session | None, request: Any, reply: Any) -> None:
        """Keeps the reply of a call that has an effect, for its repeat."""
        effective = isinstance(request, BackwardRequest) or getattr(request, "backward_follows", False)
        if session is None or not effective or request.call_id in session.replies:
            return
        tensors = reply.outputs if isinstance(reply, ForwardReply) else reply.grads
        session.replies.keep(request.call_id, fingerprint(request), reply, _size(tensors))

    def _control(self, session: Session, request: Any) -> Any:
        match request:
            case StepRequest():
                return self._step(session, request)
            case ExportRequest():
                return ExportReply(state.export_state(session, self.teacher.model_hash), session.step)
            case ImportRequest():
                state.import_state(session, request.state, self.teacher.model_hash)
                self._forget_calls(session)
                return ImportReply(session.step)
        raise AssertionError(f"no job for {type(request).__name__}")

    # Forward

    def _forward(self, session: Session, request: ForwardRequest) -> ForwardReply:
        if not request.backward_follows:
            with torch.no_grad():
                return ForwardReply(outputs=self.answers.outputs(session, request, self.answers.leaves(request)))
        cohort = self._cohort(session, request)
        self._remember(session, request, cohort)
        return ForwardReply(outputs={name: value.detach() for name, value in cohort.outputs.items()})

    def _cohort(self, session: Session, request: ForwardRequest) -> Cohort:
        leaves = self.answers.leaves(request)
        codec = map(storage_place, session.codec.parameters())
        with torch.enable_grad(), weigh_graph(self._weights.union(codec)) as weight:
            outputs = self.answers.outputs(session, request, leaves)
        return Cohort(((session.id, request.call_id),), leaves, outputs, weight.size_bytes)

    def _remember(self, session: Session, request: ForwardRequest, cohort: Cohort) -> None:
        key = (session.id, request.call_id)
        self.graphs.put(key, cohort)
        forgotten = session.open_call(request.call_id, request, _size(request.inputs), self._config.session_input_bytes)
        for call_id in forgotten:
            self.graphs.drop_call((session.id, call_id))
        if session.closed:  # it left while this ran: what it held must not stay
            self.graphs.drop(session.id)

    # Backward

    def _backward(self, session: Session, request: BackwardRequest) -> BackwardReply:
        call = self._open_call(session, request)
        cohort = self._kept_or_again(session, request, call)
        grads = _placed_grads(request.grads, cohort.outputs)
        wanted = {name: leaf for name, leaf in cohort.leaves.items() if leaf.requires_grad}
        outputs = [cohort.outputs[name] for name in grads]
        targets = [*wanted.values(), *session.parameters()]
        found = torch.autograd.grad(outputs, targets, list(grads.values()), allow_unused=True)
        # one number tells of all: a gradient too large to be squared and summed is refused, too
        if not bool(torch.isfinite(torch.nn.utils.get_total_norm(grad for grad in found if grad is not None))):
            raise NonFiniteError("the gradients came out as NaN or infinity and were not applied; lower the loss scale")
        session.gathered = _sum(session.gathered, list(found[len(wanted) :]))
        call.finished, call.request = True, None
        given = zip(wanted.items(), found, strict=False)
        return BackwardReply(
            grads={name: torch.zeros_like(leaf) if grad is None else grad for (name, leaf), grad in given}
        )

    def _open_call(self, session: Session, request: BackwardRequest) -> OpenCall:
        call = session.calls.get(request.forward_id)
        if call is None:
            raise UnknownCall(
                f"this session made no Forward {request.forward_id!r} with backward_follows, or so long ago that it is forgotten"
            )
        if call.finished:
            raise CallFinished(f"the Backward of Forward {request.forward_id!r} is done; a graph serves one Backward")
        if call.stale:
            raise StaleCall(
                f"Forward {request.forward_id!r} was made before the session's step {session.step}; do Backward before Step"
            )
        return call

    def _kept_or_again(self, session: Session, request: BackwardRequest, call: OpenCall) -> Cohort:
        cohort = self.graphs.take((session.id, request.forward_id))
        if cohort is not None:
            return cohort
        forward = call.request
        if forward is None:
            if not request.inputs:
                raise InputsNeeded(
                    f"the inputs of Forward {request.forward_id!r} were let go to stay within {self._config.session_input_bytes} "
                    "bytes; send them again with the Backward"
                )
            forward = ForwardRequest(
                session.ref, request.forward_id, request.outputs, True, request.grad_inputs, request.inputs
            )
        self._metrics.recomputes.inc()
        return self._cohort(session, forward)

    # Step

    def _step(self, session: Session, request: StepRequest) -> StepReply:
        """Applies the gathered gradients once; the same number again gets the same reply."""
        name, mark = f"step-{request.step}", fingerprint(request)
        known = session.replies.find(name, mark) if request.step == session.step else None
        if isinstance(known, StepReply):
            return known
        if request.step != session.step + 1:
            raise StepOutOfOrder(f"step {request.step} was sent, but the session's next step is {session.step + 1}")
        norm = self._apply(session, request)
        session.step += 1
        session.gathered = []
        self._forget_calls(session)
        self._metrics.session_steps.inc()
        reply = StepReply(session.step, norm)
        session.replies.keep(name, mark, reply, 0)
        return reply

    def _apply(self, session: Session, request: StepRequest) -> float:
        parameters = session.parameters()
        if request.grad_scale == 0:  # a step that loss scaling skips: what was gathered is let go, nothing moves
            return 0.0
        for parameter, grad in zip(parameters, session.gathered, strict=bool(session.gathered)):
            parameter.grad = None if grad is None else grad * request.grad_scale
        try:
            total = torch.nn.utils.get_total_norm(p.grad for p in parameters if p.grad is not None)
            norm = float(total)
            if not math.isfinite(norm):
                raise NonFiniteError(
                    "the gathered gradients are NaN or infinity in sum; lower the loss scale, and send a Step "
                    "with grad_scale 0, which lets them go"
                )
            if request.max_grad_norm:
                torch.nn.utils.clip_grads_with_norm_(parameters, request.max_grad_norm, total)
            for group in session.optimizer.param_groups:
                group["lr"] = request.lr
            session.optimizer.step()
        finally:
            session.optimizer.zero_grad(set_to_none=True)
        return norm

    def _forget_calls(self, session: Session) -> None:
        """After the codec has changed, open Forwards have no Backward any more."""
        self.graphs.drop(session.id)
        for call in session.calls.values():
            if not call.finished:
                call.stale, call.request = True, None


def _checked(job: Job) -> Session:
    session = job.session
    assert session is not None, "jobs without a session do not reach the engine"
    if session.closed:
        raise SessionNotFound("the session ended while this call waited")
    if job.request.session.epoch != session.epoch:
        raise StaleEpoch("the session was resumed by another client while this call waited")
    return session


def _placed_grads(grads: Tensors, outputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    placed = {}
    for name, grad in grads.items():
        if name not in outputs:
            raise InvalidTensor(f"gradient of {name!r} was sent, but the Forward gave {', '.join(sorted(outputs))}")
        output = outputs[name]
        if not output.requires_grad:
            raise InvalidTensor(f"output port {name!r} has no gradient: it does not depend on message or codec")
        if grad.shape != output.shape or not grad.is_floating_point():
            raise InvalidTensor(
                f"gradient of {name!r} is {grad.dtype} {list(grad.shape)}, expected float {list(output.shape)}"
            )
        placed[name] = torch.empty_like(output).copy_(grad)
    return placed


def _sum(gathered: list[torch.Tensor | None], found: list[torch.Tensor | None]) -> list[torch.Tensor | None]:
    if not gathered:
        return found
    return [new if old is None else old if new is None else old + new for old, new in zip(gathered, found, strict=True)]


def _size(tensors: Tensors) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())
