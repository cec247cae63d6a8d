"""Methods on tiny students of every modality against a real teacher in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from student_client import method_config, methods
from student_client.losses import answer_labels, interact, task_loss
from student_client.methods import METHODS, Context, Methods, build_methods, named
from student_client.teachers.teachers import Teachers, reads
from student_models import States, Student, load_student
from task_data import TaskData
from teacher_server.actor import TeacherActor
from teacher_server.local import local_teacher
from teaching_protocol.errors import IncompatibleTeacher
from tests.unit.student_client.method_setup import (
    MODALITIES,
    enrolled,
    frozen,
    one_batch,
    settings,
    student_and_data,
)


@pytest.fixture(scope="module", params=MODALITIES)
def modality(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def actor(modality: str) -> TeacherActor:
    return local_teacher(frozen(modality))


NEED_A_HEAD = {"soft_labels", "fixed_mix", "random_soft", "random_hard", "selection"}
"""Methods that ask for the teacher's logits; their own tests have a teacher with the task's head."""


@pytest.mark.parametrize("name", [name for name in METHODS if name not in NEED_A_HEAD])
def test_each_method_moves_the_student_on_every_modality(actor: TeacherActor, modality: str, name: str) -> None:
    config = settings(names=(name,))
    student, data = student_and_data(modality)
    with enrolled(actor, config, student, data) as (methods, teachers):
        outcome = methods.loss(student, one_batch(student, data), teachers)
        outcome.loss.backward()
    assert torch.isfinite(outcome.loss)
    assert all(parameter.grad is not None for parameter in student.parameters() if parameter.requires_grad)
    weights = {"task": 1.0, "interact": 1.0, "answer_task": 1.0, "answer_labels": 1.0, "committee": 1.0}
    weights |= {
        "fitnets": 1.0,
        "rkd_distance": 1.0,
        "rkd_angle": 2.0,
        "pkd": 1.0,
        "minilm": 1.0,
        "averaged_features": 1.0,
    }
    total = sum(weights.get(part, 0.1) * float(value) for part, value in outcome.parts.items())
    assert outcome.loss.item() == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize(
    "switch",
    [
        {"consistency": "batch_standardised"},
        {"consistency": "cross"},
        {"consistency": "layernorm_mse"},
        {"pairing": "question_answer"},
        {"rounds": 3},
        {"detach_target": True},
        {"answer_from": "message", "message_dropout": 0.0},
        {"inject": "add", "message_tokens": 1},
        {"inject": "prefix"},
        {"message_tokens": 1, "pooling": "cls"},
        {"message_tokens": 3, "pooling": "attention"},
        {"message_tokens": 0, "answer_from": "message", "w_message_consistency": 0.0, "w_state_consistency": 0.0},
        {"w_answer_task": 0.0, "w_answer_labels": 0.0},
    ],
    ids=lambda switch: ",".join(map(str, switch.values())),
)
def test_every_switch_of_talking_reaches_all_four_codec_parts(switch: dict[str, Any]) -> None:
    config = settings(**switch)
    student, data = student_and_data("text")
    with enrolled(local_teacher(frozen("text")), config, student, data) as (methods, teachers):
        before = teachers.first.teacher.export_state()
        outcome = methods.loss(student, one_batch(student, data), teachers)
        outcome.loss.backward()
        norm = teachers.first.teacher.step(lr=0.1)
        assert teachers.first.teacher.export_state() != before
    assert norm > 0
    assert torch.isfinite(outcome.loss)
    for name, parameter in methods.named_parameters():  # Enc_g, Dec_g and, where there are any, the queries
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_gradients_of_all_four_codec_parts_are_non_zero() -> None:
    """Enc_g and Dec_g here, Enc_h and Dec_h in the session, parameter by parameter."""
    config = settings(message_dropout=0.0)
    student, data = student_and_data("text")
    actor = local_teacher(frozen("text"))
    with enrolled(actor, config, student, data) as (methods, teachers):
        methods.loss(student, one_batch(student, data), teachers).loss.backward()
        session = actor.sessions.live()[0]
        theirs = dict(zip((name for name, _ in session.codec.named_parameters()), session.gathered, strict=True))
    ours = {name: parameter.grad for name, parameter in methods.named_parameters()}
    for name, grad in {**theirs, **ours}.items():
        assert grad is not None, name
        assert grad.abs().sum() > 0, name
    assert {name.split(".")[0] for name in theirs} == {"encoders", "decoders"}


def test_the_terms_are_the_equations() -> None:
    """L_interact and the answer labels of one round, written out from the teacher's ports."""
    config = settings(message_dropout=0.0, question_scale=1.0, answer_dropout=0.0)
    student, data = student_and_data("text")
    student.eval()
    batch = one_batch(student, data)
    with enrolled(local_teacher(frozen("text")), config, student, data) as (methods, teachers):
        found = methods.loss(student, batch, teachers)
        codec = methods.methods["talking"].codec
        lower = student.lower(batch.inputs)
        upper = student.upper(lower)
        message = codec.encode(codec.pool(lower).hidden)
        own = teachers.first.own(batch)
        views = teachers.first.teacher.forward_ports({"message": message, **own}, ["answer"])
        answer = codec.decode(views["answer"])
    target = codec.pool(upper)
    outputs, labels = student.head(upper), student.head(States(answer, target.mask))
    wanted = {
        "task": task_loss(outputs, batch.labels, batch.labelled),
        "interact": interact(target.hidden, answer, target.mask),
        "answer_task": task_loss(labels, batch.labels, batch.labelled),
        "answer_labels": answer_labels(outputs, labels, temperature=config.label_temperature),
    }
    for name, value in wanted.items():
        torch.testing.assert_close(found.parts[name], value.detach(), msg=name)


def train(student: Student, data: TaskData, methods: Methods, teachers: Teachers) -> None:
    torch.manual_seed(7)  # dropout
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-2)
    for epoch in range(6):
        outcome = methods.loss(student, one_batch(student, data, epoch=epoch), teachers)
        optimizer.zero_grad()
        outcome.loss.backward()
        optimizer.step()


@pytest.mark.parametrize("name", ["one_way", "talking"])
def test_zero_weights_train_bit_equal_to_task_only(name: str) -> None:
    zeros = dict.fromkeys(
        ("w_interact", "w_message_consistency", "w_state_consistency", "w_answer_task", "w_answer_labels"), 0.0
    )
    alone, data = student_and_data("text")
    train(alone, data, Methods({}), Teachers())
    other, _ = student_and_data("text")
    config = settings(names=(name,), **zeros)
    actor = local_teacher(frozen("text"))
    with enrolled(actor, config, other, data) as (methods, teachers):
        train(other, data, methods, teachers)
        assert teachers.account.seconds == 0.0, "what counts for nothing is not asked"
    for (key, ours), (_, theirs) in zip(alone.state_dict().items(), other.state_dict().items(), strict=True):
        assert torch.equal(ours, theirs), key
    fresh, _ = student_and_data("text")
    assert any(
        not torch.equal(a, b) for a, b in zip(fresh.state_dict().values(), alone.state_dict().values(), strict=True)
    )


def test_the_student_is_the_same_with_codecs_and_teacher_gone(
    actor: TeacherActor, modality: str, tmp_path: Path
) -> None:
    student, data = student_and_data(modality)
    config = settings()
    with enrolled(actor, config, student, data) as (methods, teachers):
        train(student, data, methods, teachers)
        student.eval()
        with_codecs = student(one_batch(student, data).inputs)
    del methods, teachers
    student.save(tmp_path / "student")
    alone = load_student(tmp_path / "student")
    assert torch.equal(with_codecs, alone(one_batch(student, data).inputs))
    assert not any("codec" in name for name in alone.state_dict())


def test_methods_compose_and_count_the_task_once() -> None:
    student, data = student_and_data("text")
    config = settings(names=("one_way", "talking", "task_only"))
    with enrolled(local_teacher(frozen("text")), config, student, data) as (methods, teachers):
        outcome = methods.loss(student, one_batch(student, data), teachers)
    assert list(outcome.parts).count("task") == 1
    assert methods.uses_unlabelled


def test_message_dropout_is_drawn_from_the_seed_and_the_call_alone() -> None:
    student, _ = student_and_data("text")
    config = settings(message_dropout=0.5, question_scale=0.3)
    first, second = (build_methods(Context(config, student, (), 5)).methods["talking"] for _ in range(2))
    message = torch.zeros(64, 1, 16)
    state = torch.get_rng_state()
    gates = [first.gate(message) for _ in range(2)]
    assert torch.equal(torch.get_rng_state(), state)
    assert set(gates[0].tolist()) == {0.0, torch.tensor(0.3).item()}
    assert not torch.equal(*gates)
    second.load_state_dict(first.state_dict())
    assert torch.equal(first.gate(message), second.gate(message)), "the draw goes on from a checkpoint"


def test_an_unknown_method_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"one of 'task_only', .*'talking'.*telepathy"):
        settings(names=("telepathy",))


def test_a_method_of_ones_own_is_known_when_it_is_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(method_config, "METHOD_NAMES", [*method_config.METHOD_NAMES])
    monkeypatch.setattr(methods, "METHOD_NAMES", method_config.METHOD_NAMES)
    monkeypatch.setattr(methods, "METHODS", {**methods.METHODS})
    methods.register("mine", methods.METHODS["one_way"])
    assert named(settings(names=("mine",))) == {"mine": methods.METHODS["one_way"]}


def test_a_teacher_of_another_modality_is_refused_with_the_ports_it_reads() -> None:
    card = local_teacher(frozen("image")).card
    with pytest.raises(IncompatibleTeacher, match=r"pixel_values.*text"):
        reads(card, ("text", "user", "item"))
    assert reads(card, ("image",)) == ("image",)
