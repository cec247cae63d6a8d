"""The teacher as an actor: the nine verbs, each checked, queued and answered.

One object serves the network and the caller in the same process alike. Knows no gRPC.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from functools import partial
from typing import Any

import torch

from teacher_server import checks
from teacher_server.config import ServerConfig
from teacher_server.engine.answers import raw_inputs
from teacher_server.engine.buckets import Buckets
from teacher_server.engine.conversation import CONVERSATION_PORTS, MESSAGE_INPUTS
from teacher_server.engine.engine import Engine
from teacher_server.jobs import Job
from teacher_server.live import LiveSettings
from teacher_server.metrics.metrics import Metrics
from teacher_server.scheduling.quotas import SessionQuotas, state_bytes
from teacher_server.scheduling.scheduler import Scheduler
from teacher_server.sessions import state
from teacher_server.sessions.codecs import CodecShape, TeacherCodec, codec_parameters
from teacher_server.sessions.optimizers import build_optimizer
from teacher_server.sessions.replies import Replies
from teacher_server.sessions.sessions import Session, Sessions, account_of, new_session_id
from teacher_server.warming import warm_up_calls
from teaching_protocol import verbs
from teaching_protocol.errors import DeadlineExceeded, Draining, InvalidSetting
from teaching_protocol.tensors import COMPRESSIONS
from teaching_protocol.verbs import Call, SessionSettings

__all__ = ["TeacherActor", "build_card"]

_SAMPLED = 16  # one Forward of so many is looked into


class TeacherActor:
    """Answers the verbs of `teaching_protocol.verbs.TeacherVerbs`."""

    def __init__(
        self, card: verbs.DescribeReply, engine: Engine, scheduler: Scheduler, live: LiveSettings, metrics: Metrics
    ) -> None:
        self.card = card
        self.sessions = Sessions(live.now.lease_s, lambda: live.now.max_sessions, SessionQuotas(live).check)
        self._engine = engine
        self._scheduler = scheduler
        self._live = live
        self._metrics = metrics
        self._has_own_device = engine.teacher.device.type != "cpu"
        self._forwards = itertools.count()
        self._buckets = Buckets(engine.teacher, live.now.max_tokens, alone=live.now.deterministic)

    def describe(self, request: verbs.DescribeRequest, call: Call) -> verbs.DescribeReply:
        """The teacher's card."""
        return self.card

    def enroll(self, request: verbs.EnrollRequest, call: Call) -> verbs.EnrollReply:
        """Opens a session, or hands a live one to a new client under the next epoch."""
        checks.check_student(request.student)
        checks.check_id("call_id", request.call_id)
        if self._scheduler.draining:
            raise Draining("the server is shutting down and opens no session; enrol elsewhere, or when it is back")
        account = account_of(call.identity, request.student)
        with self._scheduler.permit(f"enroll {account}", account):
            if request.resume:
                resumed = request.resume, request.student, request.call_id
                session = self.sessions.resume(*resumed, call.identity, call.deadline)
            else:
                checks.check_settings(request.settings, self.card)
                session = self.sessions.enrolled(account, request.call_id) or self._opened(request, call.identity)
        parameters = sum(parameter.numel() for parameter in session.parameters())
        return verbs.EnrollReply(session.ref, self.sessions.lease_s, session.step, parameters, session.settings)

    def forward(self, request: verbs.ForwardRequest, call: Call) -> verbs.ForwardReply:
        """Output ports for input ports; what is known already is answered without the engine."""
        session = self.sessions.get(request.session, call.identity)
        checks.check_forward(request, session.settings, self.card)
        if not any(port in CONVERSATION_PORTS for port in request.outputs):
            with self._scheduler.permit(session.id, session.account):
                known = self._engine.answers.known(raw_inputs(request), request.outputs)
            if known is not None:
                return verbs.ForwardReply(outputs=known)
        reply, job = self._work("Forward", session, request, call)
        timed: verbs.ForwardReply = dataclasses.replace(reply, **job.timing.seconds)
        if "answer" in request.outputs and next(self._forwards) % _SAMPLED == 0:
            self._sample("received", request.inputs["message"])
            self._sample("sent", timed.outputs["answer"])
        return timed

    def backward(self, request: verbs.BackwardRequest, call: Call) -> verbs.BackwardReply:
        """Gradients of inputs for gradients of outputs; codec gradients gather in the session."""
        session = self.sessions.get(request.session, call.identity)
        checks.check_backward(request, session.settings, self.card)
        reply, job = self._work("Backward", session, request, call)
        timed: verbs.BackwardReply = dataclasses.replace(reply, **job.timing.seconds)
        return timed

    def step(self, request: verbs.StepRequest, call: Call) -> verbs.StepReply:
        """Applies the gathered codec gradients once for each step number; those of several ranks when all have sent their Step."""
        session = self.sessions.get(request.session, call.identity)
        checks.check_step(request, session.settings)
        ranks = session.settings.world_size
        if ranks > 1:
            deadline = call.deadline or time.monotonic() + self._live.now.call_limit_s
            limits = self._live.now.rank_wait_s, deadline
            joint = Call(deadline, identity=call.identity)  # outlives who of them goes away
            with self.sessions.working(session):
                apply = partial(self._stepped, session, call=joint)
                return session.roll.meet(request, lambda: session.step, ranks, limits, apply)
        return self._stepped(session, request, call)

    def export(self, request: verbs.ExportRequest, call: Call) -> verbs.ExportReply:
        """The session's whole state, between two of its calls."""
        reply: verbs.ExportReply = self._work(
            "Export", self.sessions.get(request.session, call.identity), request, call
        )[0]
        return reply

    def import_(self, request: verbs.ImportRequest, call: Call) -> verbs.ImportReply:
        """Replaces the session's state and begins a new epoch; on an error it is as it was."""
        checks.check_id("call_id", request.call_id)
        session = self.sessions.get(request.session, call.identity, request.call_id)
        reply: verbs.ImportReply = self._work("Import", session, request, call)[0]
        return reply

    def renew(self, request: verbs.RenewRequest, call: Call) -> verbs.RenewReply:
        """Renews the lease; never waits behind work."""
        self.sessions.get(request.session, call.identity)
        return verbs.RenewReply(self.sessions.lease_s)

    def leave(self, request: verbs.LeaveRequest, call: Call) -> verbs.LeaveReply:
        """Ends the session and frees what it held."""
        self.end(self.sessions.get(request.session, call.identity), "leave")
        return verbs.LeaveReply()

    def warm_up(self) -> None:
        """Runs one small observation through queue and engine, and what must be compiled; raises what goes wrong."""
        settings = SessionSettings(entry=self.card.entry, exit=self.card.exit, message_width=1)
        session = self._new_session("warm-up", settings)
        for method, request in warm_up_calls(self._engine.teacher, session.ref, self.card, self._live.now.compile):
            self._work(method, session, request, Call())
        self._engine.graphs.drop(session.id)
        self._scheduler.forget(session.id)

    def end(self, session: Session, cause: str) -> None:
        """Ends a session for a cause: leave, lease, revoked or shutdown."""
        if self.sessions.remove(session, cause):
            self._engine.graphs.drop(session.id)
            self._scheduler.forget(session.id)
            self._metrics.students.close(session.usage)
            self._metrics.session_ends.labels(cause).inc()
            self._metrics.sessions.set(len(self.sessions))

    def reap(self, is_let_in: Callable[[str], bool] = lambda owner: True) -> None:
        """Ends the sessions whose lease ran out, and those of owners that are let in no more."""
        for session in self.sessions.expired():
            self.end(session, "lease")
        for session in self.sessions.live():
            if not is_let_in(session.owner):
                self.end(session, "revoked")

    def _stepped(self, session: Session, request: verbs.StepRequest, call: Call) -> verbs.StepReply:
        reply: verbs.StepReply = self._work("Step", session, request, call)[0]
        return reply

    def _sample(self, direction: str, message: torch.Tensor) -> None:
        """Notes how much a message on the host varies: a conversation that has collapsed says the same of every row."""
        if message.device.type != "cpu":
            return  # a student of this process: nobody waits for a device to be told this
        flat = message.detach().flatten(0, 1).float()  # [rows and tokens, width]
        if len(flat) > 1:
            self._metrics.message_variance.labels(direction).observe(float(flat.var(0).mean()))

    def _opened(self, request: verbs.EnrollRequest, owner: str) -> Session:
        session = self._new_session(request.student, request.settings, owner)
        session.enrolled_by = request.call_id
        if request.state:
            state.import_state(session, request.state, self.card.model_hash)
        session = self.sessions.add(session)
        self._metrics.students.open(owner, session.student, session.usage)
        if session.closed:  # its owner was shut out meanwhile
            self._metrics.students.close(session.usage)
        self._metrics.sessions.set(len(self.sessions))
        return session

    def _new_session(self, student: str, settings: SessionSettings, owner: str = "") -> Session:
        widths = self.card.widths
        shape = CodecShape(
            widths[settings.entry],
            widths[settings.exit],
            settings.message_width,
            settings.message_tokens,
            settings.pooling,
            settings.codec_depth,
        )
        size = codec_parameters(shape)
        if size > self._live.now.max_codec_parameters:
            raise InvalidSetting(
                f"a codec of message_width {settings.message_width}, depth {settings.codec_depth} and {settings.message_tokens} "
                f"tokens has {size:,} parameters, the limit is {self._live.now.max_codec_parameters:,}; ask for a smaller one"
            )
        held_bytes = state_bytes(size, settings.optimizer, settings.world_size)
        self.sessions.check_room(account_of(owner, student), held_bytes, owner)
        codec = TeacherCodec(shape, settings.seed).to(self._engine.teacher.device)
        optimizer = build_optimizer(codec.parameters(), settings.optimizer)
        replies = Replies(self._live.now.session_replay_bytes)
        return Session(
            new_session_id(), student, settings, codec, optimizer, replies, size_bytes=held_bytes, owner=owner
        )

    def _work(self, method: str, session: Session, request: Any, call: Call) -> tuple[Any, Job]:
        """Queues a job and waits for its reply until the call's deadline."""
        deadline = call.deadline or time.monotonic() + self._live.now.call_limit_s
        call = Call(deadline, call.cancelled, call.identity)
        extent = self._buckets.extent(session, request)
        job = Job(method, session, request, call, extent.rows, extent.tokens, bucket=extent.bucket)
        try:
            with self.sessions.working(session):
                future: Future[Any] = self._scheduler.submit(job)
                if self._has_own_device and job.has_effect:
                    job.note_mark()  # this thread waits anyhow; where the model runs on these cores, it would be in its way
                return future.result(max(0.0, deadline - time.monotonic())), job
        except FutureTimeout:
            call.cancelled.set()
            raise DeadlineExceeded(
                f"{method} was not done by its deadline; the server is busy, or raise the deadline"
            ) from None


def build_card(engine: Engine, config: ServerConfig) -> verbs.DescribeReply:
    """The card of a loaded teacher under a configuration."""
    teacher, family = engine.teacher, engine.teacher.family
    span = teacher.default_span()
    outputs = [*CONVERSATION_PORTS, "hidden.<layer>", "hidden.<layer>.mean<tokens>", "pooled"]
    outputs += ["attention_mask"] if family.modality == "text" else []
    outputs += ["logits", "logits.top<k>"] if teacher.heads else []
    outputs += checks.LANGUAGE_PORTS if teacher.heads == ("causal_lm",) else []
    return verbs.DescribeReply(
        model_name=teacher.name,
        model_hash=teacher.model_hash,
        family=family.name,
        layers=family.layers,
        widths=tuple(family.widths),
        entry=span.start if config.entry is None else config.entry,
        exit=span.stop if config.exit is None else config.exit,
        vocabulary_size=teacher.vocabulary_size,
        tokenizer_hash=teacher.tokenizer_hash,
        heads=tuple(teacher.heads),
        labels=tuple(teacher.labels),
        input_ports=(*MESSAGE_INPUTS, *teacher.input_ports),
        output_ports=tuple(sorted(outputs)),
        compressions=tuple(COMPRESSIONS),
        dtype=config.dtype,
        deterministic=config.deterministic,
        parameters=teacher.sizes[0],
        weight_bytes=teacher.sizes[1],
        head_hash=teacher.head_hash,
        limits=verbs.Limits(
            config.message_bytes,
            config.max_rows,
            config.max_tokens,
            config.max_message_width,
            config.max_codec_depth,
            config.lease_s,
            config.session_permits,
        ),
    )
