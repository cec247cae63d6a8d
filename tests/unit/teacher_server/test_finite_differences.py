"""Finite differences through the verbs: right for every family, and wrong gradients are found."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from teacher_server.local import local_teacher
from teacher_server.models.split import FrozenTeacher
from teaching_protocol.diagnosis.findings import Finding
from teaching_protocol.diagnosis.gradients import check_codec_gradient, check_gradient
from teaching_protocol.diagnosis.probe import Probe, probe_settings
from tests.unit.teacher_server.tiny_models import MODEL_TYPES, tiny_model


def found(teacher: FrozenTeacher, dtype: str = "float32") -> tuple[Finding, Finding]:
    actor = local_teacher(teacher, dtype=dtype)
    with Probe(actor, "doctor", probe_settings(actor.card), 20.0) as probe:
        both = check_gradient(probe, dtype), check_codec_gradient(probe, dtype)
    assert len(actor.sessions) == 0
    return both


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_gradients_of_every_family_are_right(model_type: str) -> None:
    for each in found(FrozenTeacher(tiny_model(model_type), model_type)):
        assert each.status == "ok", each


class Wrong(torch.autograd.Function):
    """Passes what it gets, and sends another gradient back."""

    @staticmethod
    def forward(ctx: Any, states: torch.Tensor, kind: str) -> torch.Tensor:
        ctx.kind = kind
        return states.clone()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, None]:
        wrong = {"long": 1.3 * grad, "turned": grad.roll(1, -1), "half": grad * (torch.arange(grad.shape[-1]) % 2)}
        return wrong[ctx.kind], None


@pytest.mark.parametrize("kind", ["long", "turned", "half"])
def test_a_wrong_gradient_is_found(kind: str) -> None:
    teacher = FrozenTeacher(tiny_model("bert"), "broken")
    block: Any = teacher.family.blocks[-1]  # type: ignore[attr-defined]
    block.register_forward_hook(lambda module, given, output: Wrong.apply(output, kind))
    message, codec = found(teacher)
    assert message.status == "fail"
    assert codec.status in ("warn", "fail")  # the encoder's part of it is still right


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rough_and_no_failure(dtype: torch.dtype) -> None:
    name = str(dtype).removeprefix("torch.")
    for each in found(FrozenTeacher(tiny_model("bert").to(dtype), "half"), name):
        assert each.status in ("ok", "warn"), each
        assert each.status == "ok" or "--dtype float32" in each.advice


def test_a_probe_lets_go_of_what_it_gathered_and_ends_where_it_began() -> None:
    actor = local_teacher(FrozenTeacher(tiny_model("bert"), "bert"))
    with Probe(actor, "doctor", probe_settings(actor.card), 20.0) as probe:
        probe.step(0.0)
        before = probe.export()
        check_codec_gradient(probe, "float32")
        after = probe.export()
    names = b"gathered."
    assert names not in after
    assert len(before) == len(after)
