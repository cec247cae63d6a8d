"""int8 on the wire between a real server and a real student: near enough, counted on both sides, refused where unknown."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

import pytest
import torch

from student_client import InProcessTeacher, RemoteTeacher
from teacher_server.local import local_teacher
from teacher_server.models.split import FrozenTeacher
from teaching_protocol.errors import IncompatibleTeacher
from tests.integration.processes import Address

WIDTH = 64


def message() -> torch.Tensor:
    return torch.randn(4, 8, WIDTH, generator=torch.Generator().manual_seed(3)).requires_grad_()


def gradient(teacher: Any, scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The answer, and the gradient of a loss whose gradient at the answer is `scale`."""
    sent = message()
    answer = teacher(sent)
    (answer * scale).sum().backward()
    assert sent.grad is not None
    return answer.detach(), sent.grad


def off(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float((found - exact).abs().sum() / exact.abs().sum())


def test_answers_and_gradients_are_near_and_counted(servers: dict[str, Address], caplog: Any) -> None:
    server = servers["bert"]
    count = ("teacher_int8_error_count", "teacher_int8_fallbacks_total")
    before = [server.metric(name, method="Backward") for name in count]
    scale = torch.randn(4, 8, WIDTH, generator=torch.Generator().manual_seed(4))
    with RemoteTeacher(server.name, student="exact", compression="none", message_width=WIDTH) as exact:
        right = gradient(exact, scale)
    with RemoteTeacher(server.name, student="int8", compression="int8", message_width=WIDTH) as teacher:
        assert "int8" in teacher.describe().compressions
        found = gradient(teacher, scale)
        account = teacher._session.transport.int8
        assert off(found[0], right[0]) < 0.03
        assert off(found[1], right[1]) < 0.03
        assert (account.tensors, account.fallbacks) == (2, 0)
        assert 0.001 < account.mean_error < 0.01
        assert [server.metric(name, method="Backward") for name in count] == [before[0] + 1, before[1]]
        scale[..., 0] = 1000.0
        with caplog.at_level(logging.INFO):
            gradient(teacher, scale)
            gradient(teacher, scale)
        assert (account.tensors, account.fallbacks) == (4, 2)
    assert sum("such go as bf16" in record.getMessage() for record in caplog.records) == 1


def test_a_teacher_that_takes_no_int8_is_refused(bert: FrozenTeacher) -> None:
    actor = local_teacher(bert)
    actor.card = dataclasses.replace(actor.card, compressions=("none", "bf16"))
    teacher = InProcessTeacher(actor, student="a", message_width=WIDTH)
    teacher._session._compression = "int8"
    with pytest.raises(IncompatibleTeacher, match=r"takes the compressions none, bf16, but this student .* send int8"):
        teacher.enroll()
