from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from student_client.config import RunConfig, TeacherConfig, TrainingConfig, load_run_config
from student_client.teachers.remote import InProcessTeacher
from student_client.teachers.teachers import Member, Teachers
from student_client.training.acceleration import build_accelerator
from student_client.training.conversation import Conversation
from student_client.training.optimization import JointOptimizer, schedule_factor
from teacher_server.actor import TeacherActor
from teacher_server.local import local_teacher
from teaching_protocol.errors import NonFiniteError, StateMismatch
from tests.unit.teacher_server.tiny_models import text_bytes

WIDTH = 8


@dataclass
class Sides:
    """A student that is one layer, a codec that is another, and a teacher that answers."""

    student: nn.Linear
    codec: nn.Linear
    teacher: InProcessTeacher
    optimizer: JointOptimizer
    accelerator: Any

    def loss(self, factor: float = 1.0) -> torch.Tensor:
        message = self.codec(self.student(torch.ones(2, 3, 4)))
        inputs = {"message": message, "text": text_bytes("good film", "bad")}
        return factor * self.teacher.forward_ports(inputs, ["answer"])["answer"].square().mean()

    def weights(self) -> list[torch.Tensor]:
        return [value.detach().clone() for side in (self.student, self.codec) for value in side.parameters()]


@pytest.fixture(scope="module")
def actor(model_folder: Any) -> TeacherActor:
    return local_teacher(str(model_folder("bert")), device="cpu", entry=1, exit=3, deterministic=True)


@pytest.fixture
def open_sides(actor: TeacherActor, tmp_path: Path) -> Iterator[Any]:
    opened: list[InProcessTeacher] = []

    def make(scale: float | None = None, **training: Any) -> Sides:
        config = sides_config(tmp_path, scale, training)
        student, codec = nn.Linear(4, WIDTH), nn.Linear(WIDTH, WIDTH)
        for number, layer in enumerate((student, codec)):
            nn.init.normal_(layer.weight, generator=torch.Generator().manual_seed(number))
            nn.init.zeros_(layer.bias)
        teacher = InProcessTeacher(actor, student=f"s{len(opened)}", message_width=WIDTH, seed=3)
        teacher.enroll()
        opened.append(teacher)
        accelerator = build_accelerator(config.training.model_copy(update={"mixed_precision": "no"}), tmp_path)
        if scale is not None:  # what accelerate does on a GPU with fp16
            accelerator.state._mixed_precision = "fp16"
            accelerator.native_amp = True
            accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        conversation: Any = Conversation(student, codec, Teachers([Member(teacher, ())]))  # type: ignore[arg-type]
        optimizer = JointOptimizer(config, accelerator, conversation, total_steps=4)
        return Sides(student, codec, teacher, optimizer, accelerator)

    yield make
    for teacher in opened:
        teacher.leave()


def sides_config(folder: Path, scale: float | None, training: dict[str, Any]) -> RunConfig:
    fields = {"lr": 1e-2, "warmup_steps": 0, "tensorboard": False, "device": "cpu", "max_grad_norm": 0.5} | training
    return load_run_config(None, {"output": folder, "training": fields, "teacher": TeacherConfig(lr=2e-2)})


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("linear", [0.5, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0]),
        ("cosine", [0.5, 1.0, 1.0, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2, 0.0]),
        ("constant", [0.5] + [1.0] * 6),
    ],
)
def test_schedule(schedule: Any, expected: list[float]) -> None:
    training = TrainingConfig(schedule=schedule, warmup_steps=2)
    assert [schedule_factor(training, step, 6) for step in range(7)] == pytest.approx(expected)


def test_one_step_moves_all_three(open_sides: Any) -> None:
    sides = open_sides()
    before, session = sides.weights(), sides.teacher.export_state()
    sides.optimizer.backward(sides.loss())
    norms = sides.optimizer.step(0)
    assert norms.keys() == {"grad_norm", "codec_grad_norm", "teacher_grad_norm"}
    assert all(norm > 0 for norm in norms.values())
    assert not any(torch.equal(old, new) for old, new in zip(before, sides.weights(), strict=True))
    assert sides.teacher.export_state() != session
    assert sides.teacher.steps == 1
    assert all(parameter.grad is None for parameter in sides.student.parameters())


def test_student_and_codec_are_clipped_each_on_its_own(open_sides: Any) -> None:
    def stepped(codec_factor: float) -> list[torch.Tensor]:
        sides = open_sides()
        sides.optimizer.backward(sides.student.weight.sum() + codec_factor * sides.codec.weight.sum())
        sides.optimizer.step(0)
        moments = sides.optimizer.tensors()
        return [moments[f"{place}.exp_avg"] for place in (0, 2)]  # the weights; the biases have none

    small, large = stepped(1e-3), stepped(1e3)
    assert torch.equal(small[0], large[0])
    assert large[0].norm() / 0.1 == pytest.approx(0.5, rel=1e-4)
    assert large[1].norm() / 0.1 == pytest.approx(0.5, rel=1e-4)


def test_a_loss_scale_changes_nothing_on_either_side(open_sides: Any) -> None:
    """A power of two scales gradients exactly, so the steps are the same bit for bit."""
    plain, scaled = open_sides(), open_sides(scale=2.0**10)
    for step in range(3):
        norms = []
        for sides in (plain, scaled):
            sides.optimizer.backward(sides.loss())
            norms.append(sides.optimizer.step(step))
        assert norms[0] == norms[1]
    for first, second in zip(plain.weights(), scaled.weights(), strict=True):
        assert torch.equal(first, second)
    assert plain.teacher.export_state() == scaled.teacher.export_state()


def test_an_overflow_is_skipped_on_both_sides_and_lowers_the_scale(open_sides: Any) -> None:
    sides = open_sides(scale=2.0**120)
    before, answer = sides.weights(), sides.loss().item()
    sides.optimizer.backward(sides.loss(2.0**20))  # the gradient that goes to the teacher is infinite
    sides.optimizer.step(0)
    assert all(torch.equal(old, new) for old, new in zip(before, sides.weights(), strict=True))
    assert sides.loss().item() == answer
    assert sides.teacher.steps == 1
    assert sides.accelerator.scaler.get_scale() == 2.0**119
    sides.accelerator.scaler.update(2.0**4)
    sides.optimizer.backward(sides.loss())
    sides.optimizer.step(1)
    assert sides.teacher.steps == 2
    assert not torch.equal(before[0], sides.weights()[0])


def test_without_a_loss_scale_an_overflow_is_an_error(open_sides: Any) -> None:
    sides = open_sides()
    with pytest.raises(NonFiniteError):
        sides.optimizer.backward(sides.loss(math.inf))
    sides.optimizer.backward(sides.student.weight.sum() * math.inf)
    with pytest.raises(NonFiniteError, match="grad_norm: received inf"):
        sides.optimizer.step(0)


def test_moments_and_loss_scale_go_on_where_they_were(open_sides: Any) -> None:
    first, second = open_sides(scale=2.0**10), open_sides(scale=2.0**5)
    first.optimizer.backward(first.loss())
    first.optimizer.step(0)
    second.optimizer.load(first.optimizer.tensors(), first.optimizer.facts())
    assert second.accelerator.scaler.get_scale() == 2.0**10
    again = second.optimizer.tensors()
    assert all(torch.equal(value, again[name]) for name, value in first.optimizer.tensors().items())
    with pytest.raises(StateMismatch, match="belongs to no parameter"):
        second.optimizer.load({"0.exp_avg": torch.zeros(3)}, second.optimizer.facts())
    with pytest.raises(StateMismatch, match="belongs to no parameter"):
        second.optimizer.load({"9.exp_avg": torch.zeros(3)}, second.optimizer.facts())
