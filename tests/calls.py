"""One student's calls made by hand: good requests that a test changes in one place, and typed sends."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from safetensors.torch import load

from student_client.connection.transport import GrpcTransport
from teaching_protocol import verbs
from teaching_protocol.errors import TeachingError
from teaching_protocol.verbs import Call, SessionRef, SessionSettings

__all__ = ["WIDTH", "Caller", "attempt", "backward_request", "forward_request", "good_step", "in_s"]

WIDTH = 8
_ids = itertools.count(1)


def attempt(function: Callable[[], Any]) -> Any:
    """What a function gives, or the error of the tree it raises."""
    try:
        return function()
    except TeachingError as error:
        return error


def in_s(seconds: float) -> Call:
    return Call(time.monotonic() + seconds)


def forward_request(session: SessionRef, **changes: Any) -> verbs.ForwardRequest:
    """A good Forward of two rows of three tokens, changed."""
    inputs: Mapping[str, torch.Tensor] = {
        "message": torch.linspace(-1, 1, 2 * 3 * WIDTH).reshape(2, 3, WIDTH),
        "message_mask": torch.tensor([[True, True, True], [True, True, False]]),
    }
    good = verbs.ForwardRequest(session, f"call-{next(_ids)}", ("answer",), True, ("message",), inputs)
    return dataclasses.replace(good, **changes)


def backward_request(forward: verbs.ForwardRequest, **changes: Any) -> verbs.BackwardRequest:
    """A good Backward of a Forward for `answer`, changed."""
    rows, tokens, _ = forward.inputs["message"].shape
    grads = {"answer": torch.linspace(1, 2, rows * tokens * WIDTH).reshape(rows, tokens, WIDTH)}
    good = verbs.BackwardRequest(forward.session, f"call-{next(_ids)}", forward.call_id, grads)
    return dataclasses.replace(good, **changes)


class Caller:
    """A session without heartbeat: exactly the calls a test makes. Use as a context manager."""

    def __init__(self, teacher: Any, student: str, seed: int = 0, **settings: Any) -> None:
        spans = {"entry": 1, "exit": 4, "message_width": WIDTH}
        self.teacher = GrpcTransport(teacher, "none", patience_s=0.2) if isinstance(teacher, str) else teacher
        self.student = student
        self.settings = SessionSettings(**spans | {"seed": seed} | settings)
        self.session = SessionRef()

    def __enter__(self) -> Caller:
        request = verbs.EnrollRequest(self.student, self.settings)
        self.session = self.teacher.enroll(request, in_s(20)).session
        return self

    def __exit__(self, *_: object) -> None:
        self.teacher.leave(verbs.LeaveRequest(self.session), in_s(20))
        if isinstance(self.teacher, GrpcTransport):
            self.teacher.close()

    def forward(self, **changes: Any) -> tuple[verbs.ForwardRequest, verbs.ForwardReply]:
        request = forward_request(**{"session": self.session} | changes)
        return request, self.teacher.forward(request, in_s(20))

    def backward(self, forward: verbs.ForwardRequest, **changes: Any) -> verbs.BackwardReply:
        reply: verbs.BackwardReply = self.teacher.backward(backward_request(forward, **changes), in_s(20))
        return reply

    def step(self, step: int, **changes: Any) -> verbs.StepReply:
        request = dataclasses.replace(verbs.StepRequest(self.session, step, 0.01), **changes)
        reply: verbs.StepReply = self.teacher.step(request, in_s(20))
        return reply

    def export(self) -> bytes:
        reply: verbs.ExportReply = self.teacher.export(verbs.ExportRequest(self.session), in_s(20))
        return reply.state

    def gathered(self) -> dict[str, torch.Tensor]:
        """The codec gradients since the last Step, by place."""
        return {name: value for name, value in load(self.export()).items() if name.startswith("gathered.")}


def good_step(teacher: Any, student: str) -> dict[str, torch.Tensor]:
    """What a good student gets from a fresh session: outputs, gradient, norm, and the answer after the step."""
    with Caller(teacher, student) as caller:
        forward, first = caller.forward()
        grads = caller.backward(forward).grads
        norm = caller.step(1).grad_norm
        second = caller.forward()[1]
    values = {"answer": first.outputs["answer"], "gradient": grads["message"], "after": second.outputs["answer"]}
    return values | {"norm": torch.tensor(norm)}
