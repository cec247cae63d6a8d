"""A teacher as an nn.Module: session, lease, and the one autograd function; knows no method."""

from __future__ import annotations

import contextlib
import itertools
import random
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TypedDict, Unpack

import torch
from torch import nn

from student_client.transport import GrpcTransport
from teaching_protocol import verbs
from teaching_protocol.errors import IncompatibleTeacher, InputsNeeded, TeachingError
from teaching_protocol.verbs import (
    PROTOCOL_VERSION,
    Call,
    OptimizerSettings,
    SessionSettings,
    TeacherVerbs,
    has_gradient,
)

__all__ = ["InProcessTeacher", "RemoteTeacher", "SessionOptions", "Teacher"]

Tensors = Mapping[str, torch.Tensor]


class SessionOptions(TypedDict, total=False):
    """Keywords of a teacher: the fields of `SessionSettings`; entry and exit default to the card's."""

    task: str
    message_width: int
    message_tokens: int
    pooling: str
    entry: int
    exit: int
    codec_depth: int
    answer_from: str
    inject: str
    optimizer: OptimizerSettings
    seed: int


class Teacher(nn.Module):
    """A session with a teacher behind any transport. Use as a context manager, or `enroll` and `leave`.

    Calls are made in the order of the code. Backward through an output sends its gradient to the
    teacher, which gathers its codec's gradients until `step`.
    """

    def __init__(
        self, transport: TeacherVerbs, student: str, compression: str, deadline_s: float, options: SessionOptions
    ) -> None:
        super().__init__()
        self.student = student
        self.compression = compression
        self.deadline_s = deadline_s
        self.seconds = 0.0
        """Seconds the teacher has computed for this session."""
        self.wait_s = 0.0
        """Seconds this side has waited for Forward and Backward."""
        self.steps = 0
        self._options = options
        self._transport = transport
        self._session = verbs.SessionRef()
        self._card: verbs.DescribeReply | None = None
        self._settings = SessionSettings()
        self._calls = itertools.count(1)
        self._run = uuid.uuid4().hex[:8]
        self._ending = threading.Event()
        self._anchor = torch.zeros((), requires_grad=True)

    @property
    def card(self) -> verbs.DescribeReply:
        """What the teacher says of itself; asked once.

        Raises:
            IncompatibleTeacher: it speaks another version of the protocol.
        """
        if self._card is None:
            card = self._transport.describe(verbs.DescribeRequest(), self._call())
            if card.protocol_version != PROTOCOL_VERSION:
                raise IncompatibleTeacher(
                    f"the teacher speaks protocol version {card.protocol_version}, this client {PROTOCOL_VERSION}; "
                    "install the same release of talking-models on both sides"
                )
            self._card = card
        return self._card

    @property
    def session(self) -> verbs.SessionRef:
        """The session's id and epoch. The id opens the session: keep it secret."""
        return self._session

    @property
    def settings(self) -> SessionSettings:
        """What the session was enrolled with."""
        return self._settings

    def enroll(self, state: bytes = b"", resume: str = "") -> Teacher:
        """Opens the session, from exported state where given, or takes over the live session `resume`."""
        card = self.card
        if isinstance(self._transport, GrpcTransport):
            self._transport.message_bytes = card.limits.message_bytes
        spans = {"entry": card.entry, "exit": card.exit}
        options: dict[str, Any] = {**spans, **self._options}
        self._settings = SessionSettings(**options)
        request = verbs.EnrollRequest(self.student, self._settings, resume, state)
        reply = self._transport.enroll(request, self._call())
        self._session, self.steps = reply.session, reply.step
        self._start_heartbeat(reply.lease_s)
        return self

    def leave(self) -> None:
        """Ends the session and the heartbeat; harmless when repeated or when the teacher is gone."""
        self._ending.set()
        if self._session.session_id:
            session, self._session = self._session, verbs.SessionRef()
            with contextlib.suppress(TeachingError):  # else the lease ends it
                self._transport.leave(verbs.LeaveRequest(session), Call(time.monotonic() + min(2.0, self.deadline_s)))
        if isinstance(self._transport, GrpcTransport):
            self._transport.close()

    def forward(self, message: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Answers a message [batch, tokens, message_width]: the same shape (or `message_tokens`), differentiable."""
        inputs = {"message": message} if mask is None else {"message": message, "message_mask": mask}
        return self.forward_ports(inputs, ["answer"])["answer"]

    def forward_ports(self, inputs: Tensors, outputs: Sequence[str]) -> dict[str, torch.Tensor]:
        """Output ports for input ports, differentiable to the float message inputs and the teacher's codec."""
        names = tuple(inputs)
        backward_follows = torch.is_grad_enabled() and any(map(has_gradient, outputs))
        call = _PortCall(self, names, tuple(outputs), backward_follows)
        found = _Exchange.apply(call, self._anchor, *inputs.values())  # type: ignore[no-untyped-call]
        return dict(zip(outputs, found, strict=True))

    def observe(self, inputs: Tensors, outputs: Sequence[str]) -> dict[str, torch.Tensor]:
        """What the teacher knows about raw inputs: no gradient, cached by the server."""
        with torch.no_grad():
            return self.forward_ports(inputs, outputs)

    def step(self, lr: float, grad_scale: float = 1.0, max_grad_norm: float = 0.0) -> float:
        """Applies the teacher-side codec's gathered gradients; gives their norm after `grad_scale`."""
        request = verbs.StepRequest(self._session, self.steps + 1, lr, grad_scale, max_grad_norm)
        reply = self._transport.step(request, self._call())
        self.steps = reply.step
        return reply.grad_norm

    def export_state(self) -> bytes:
        """The whole state of the session on the teacher's side, as safetensors bytes."""
        return self._transport.export(verbs.ExportRequest(self._session), self._call()).state

    def import_state(self, state: bytes) -> int:
        """Replaces the session's state; gives the step it stands at."""
        reply = self._transport.import_(verbs.ImportRequest(self._session, state), self._call())
        self.steps = reply.step
        return reply.step

    def __enter__(self) -> Teacher:
        self.enroll()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.leave()

    def _call(self) -> Call:
        return Call(time.monotonic() + self.deadline_s)

    def _next_id(self) -> str:
        return f"{self._run}-{next(self._calls)}"

    def _start_heartbeat(self, lease_s: float) -> None:
        self._ending = ending = threading.Event()
        session = self._session

        def beat() -> None:
            while not ending.wait(lease_s / 3 * (0.75 + 0.25 * random.random())):
                try:
                    self._transport.renew(verbs.RenewRequest(session), Call(time.monotonic() + lease_s / 3))
                except TeachingError:
                    continue  # the next call tells the caller

        threading.Thread(target=beat, name=f"lease-{self.student}", daemon=True).start()


class RemoteTeacher(Teacher):
    """A teacher behind gRPC.

    Args:
        address: `host:port` of a teacher server.
        student: this student's name, one live session each.
        compression: how float ports travel: bf16 (default), fp16, or none for float32.
        deadline_s: seconds any one call may take.
        options: fields of `SessionSettings`, see `SessionOptions`.
    """

    def __init__(
        self,
        address: str,
        *,
        student: str,
        compression: str = "bf16",
        deadline_s: float = 60.0,
        **options: Unpack[SessionOptions],
    ) -> None:
        super().__init__(GrpcTransport(address, compression), student, compression, deadline_s, options)


class InProcessTeacher(Teacher):
    """The same API on a teacher in this process (`teacher_server.local.local_teacher`), without a network.

    Args:
        teacher: anything with the verbs of `TeacherVerbs`.
        student: this student's name.
        options: as of `RemoteTeacher`; nothing is compressed.
    """

    def __init__(
        self, teacher: TeacherVerbs, *, student: str, deadline_s: float = 600.0, **options: Unpack[SessionOptions]
    ) -> None:
        super().__init__(teacher, student, "none", deadline_s, options)


@dataclass
class _PortCall:
    """One Forward and what its Backward needs."""

    teacher: Teacher
    names: tuple[str, ...]
    outputs: tuple[str, ...]
    backward_follows: bool

    def forward(self, values: Sequence[torch.Tensor], wanted: Sequence[bool]) -> list[torch.Tensor]:
        """Sends the Forward; gives the outputs on the inputs' device, float32 where they are floats."""
        teacher = self.teacher
        self.id = teacher._next_id()
        self.grad_inputs = tuple(name for name, grad in zip(self.names, wanted, strict=True) if grad)
        request = verbs.ForwardRequest(
            teacher.session,
            self.id,
            self.outputs,
            self.backward_follows,
            self.grad_inputs,
            dict(zip(self.names, values, strict=True)),
            teacher.compression,
        )
        started = time.monotonic()
        reply = teacher._transport.forward(request, teacher._call())
        self._count(started, reply.compute_s)
        return [_placed(reply.outputs[name], values[0].device) for name in self.outputs]

    def backward(self, grads: Sequence[torch.Tensor | None], values: Sequence[torch.Tensor]) -> Tensors:
        """Sends the Backward, with the inputs once more if the server has let go of them."""
        teacher = self.teacher
        given = {name: grad for name, grad in zip(self.outputs, grads, strict=True) if grad is not None}
        facts: dict[str, Any] = {"forward_id": self.id, "grads": given, "compression": teacher.compression}
        started = time.monotonic()
        try:
            reply = self._send_backward(facts)
        except InputsNeeded:
            again = {
                "outputs": self.outputs,
                "grad_inputs": self.grad_inputs,
                "inputs": dict(zip(self.names, values, strict=True)),
            }
            reply = self._send_backward(facts | again)
        self._count(started, reply.compute_s)
        return reply.grads

    def _send_backward(self, facts: dict[str, Any]) -> verbs.BackwardReply:
        teacher = self.teacher
        request = verbs.BackwardRequest(teacher.session, teacher._next_id(), **facts)
        return teacher._transport.backward(request, teacher._call())

    def _count(self, started: float, compute_s: float) -> None:
        self.teacher.wait_s += time.monotonic() - started
        self.teacher.seconds += compute_s


class _Exchange(torch.autograd.Function):
    """Forward and Backward of one call as autograd sees them.

    The anchor always requires a gradient, so that Backward reaches the teacher's codec even when nothing
    the student sent requires one.
    """

    @staticmethod
    def forward(ctx: Any, call: _PortCall, anchor: torch.Tensor, *values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        wanted = [need and call.backward_follows for need in ctx.needs_input_grad[2:]]
        outputs = call.forward(values, wanted)
        ctx.call = call
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*values)
        constant = [value for name, value in zip(call.outputs, outputs, strict=True) if not has_gradient(name)]
        ctx.mark_non_differentiable(*constant)
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        values = ctx.saved_tensors
        if all(grad is None for grad in grads):
            return (None, None, *(None for _ in values))
        found = ctx.call.backward(grads, values)
        given = zip(ctx.call.names, values, strict=True)
        return (
            None,
            None,
            *(_placed(found[name], value.device).to(value.dtype) if name in found else None for name, value in given),
        )


def _placed(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """In memory of our own (received memory is read-only), floats as float32."""
    dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
    return torch.empty(tensor.shape, dtype=dtype, device=device).copy_(tensor)
