"""A session of the doctor's own with any teacher: few rows, few calls, each with a deadline, and gone at the end.

Takes the verbs wherever they are: behind gRPC or in this process. Knows no training.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import threading
import time
import uuid
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import torch

from teaching_protocol import verbs
from teaching_protocol.errors import TeachingError
from teaching_protocol.verbs import Call, DescribeReply, OptimizerSettings, SessionSettings, TeacherVerbs, Tensors

__all__ = ["ROWS", "TOKENS", "WIDTH", "Probe", "Reply", "doctor_name", "noise", "probe_settings"]

ROWS, TOKENS, WIDTH = 2, 16, 16  # sixteen tokens are a grid, too, that strides may make smaller
_LEAVE_S = 2.0


@dataclass(frozen=True)
class Reply:
    """An answer [rows, tokens, width], what the teacher says it took, and what the caller waited."""

    answer: torch.Tensor
    call_id: str
    queue_s: float
    compute_s: float
    wait_s: float


def doctor_name(purpose: str) -> str:
    """A student's name that says what it is: its session is a doctor's, and on which host."""
    return f"doctor-{purpose}-{socket.gethostname()[:40]}-{os.getpid()}-{uuid.uuid4().hex[:6]}"


def probe_settings(card: DescribeReply, width: int = WIDTH) -> SessionSettings:
    """A session as small as it can be, from the card's default entry to its exit."""
    return SessionSettings(
        task="doctor",
        message_width=min(width, card.limits.message_width),
        entry=card.entry,
        exit=card.exit,
        codec_depth=1,
        optimizer=OptimizerSettings(name="sgd", weight_decay=0.0),
    )


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    """Normally distributed numbers, the same for the same seed, as messages are."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Probe:
    """One enrolled session; use as a context manager, or `enroll` and `leave`.

    Args:
        teacher: who answers.
        name: the student's name.
        settings: of the session.
        limit_s: deadline of each call.
    """

    def __init__(self, teacher: TeacherVerbs, name: str, settings: SessionSettings, limit_s: float) -> None:
        self.teacher = teacher
        self.name = name
        self.settings = settings
        self.ref = verbs.SessionRef()
        self.parameters = 0
        self._steps = 0
        self._limit_s = limit_s
        self._ids = itertools.count(1)
        self._leaving = threading.Lock()
        self._run = uuid.uuid4().hex[:8]

    def enroll(self) -> Self:
        """Opens the session."""
        request = verbs.EnrollRequest(self.name, self.settings, call_id=uuid.uuid4().hex)
        reply = self.teacher.enroll(request, self._call())
        self.ref, self.parameters = reply.session, reply.parameters
        return self

    def leave(self) -> None:
        """Ends the session; harmless when repeated, and where the teacher is gone its lease ends it."""
        with self._leaving:
            ref, self.ref = self.ref, verbs.SessionRef()
        if ref.session_id:
            with contextlib.suppress(TeachingError):
                self.teacher.leave(verbs.LeaveRequest(ref), Call(time.monotonic() + _LEAVE_S))

    def forward(
        self, message: torch.Tensor, *, follows: bool = False, compression: str = "none", call_id: str = ""
    ) -> Reply:
        """The answer to a message [rows, tokens, width]; `follows` keeps the graph for a `backward`."""
        call_id = call_id or self._next_id()
        wanted = ("message",) if follows else ()
        request = verbs.ForwardRequest(
            self.ref, call_id, ("answer",), follows, wanted, {"message": message}, compression
        )
        began = time.monotonic()
        reply = self.teacher.forward(request, self._call())
        wait_s = time.monotonic() - began
        return Reply(reply.outputs["answer"], call_id, reply.queue_s, reply.compute_s, wait_s)

    def backward(self, forward: Reply, grad: torch.Tensor, compression: str = "none") -> torch.Tensor:
        """The message's gradient for a gradient of the answer; the codec's gathers in the session."""
        facts: dict[str, Any] = {"grads": {"answer": grad}, "compression": compression}
        request = verbs.BackwardRequest(self.ref, self._next_id(), forward.call_id, **facts)
        return self.teacher.backward(request, self._call()).grads["message"]

    def observe(self, inputs: Tensors, outputs: tuple[str, ...]) -> Tensors:
        """What the teacher knows about raw inputs of its own."""
        request = verbs.ForwardRequest(self.ref, "", outputs, inputs=inputs)
        return self.teacher.forward(request, self._call()).outputs

    def step(self, lr: float) -> float:
        """Applies the gathered gradients and lets go of them; gives their length."""
        reply = self.teacher.step(verbs.StepRequest(self.ref, self._steps + 1, lr), self._call())
        self._steps = reply.step
        return reply.grad_norm

    def export(self) -> bytes:
        """The session's state."""
        return self.teacher.export(verbs.ExportRequest(self.ref), self._call()).state

    def import_state(self, state: bytes) -> None:
        """Replaces the session's state."""
        self._steps = self.teacher.import_(verbs.ImportRequest(self.ref, state), self._call()).step

    def _call(self) -> Call:
        return Call(time.monotonic() + self._limit_s)

    def _next_id(self) -> str:
        return f"{self._run}-{next(self._ids)}"

    def __enter__(self) -> Self:
        return self.enroll()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.leave()
