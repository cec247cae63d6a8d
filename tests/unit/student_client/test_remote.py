"""The teacher as an nn.Module, on a real teacher in this process: autograd, session, lease."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors.torch import load
from torch import nn

from student_client import InProcessTeacher
from teacher_server.actor import TeacherActor
from teacher_server.engine.conversation import Conversation
from teacher_server.engine.merging import answering, together
from teacher_server.local import local_teacher
from teacher_server.models.split import FrozenTeacher
from teacher_server.sessions.codecs import CodecShape, TeacherCodec
from teaching_protocol.errors import (
    CallFinished,
    IncompatibleTeacher,
    InvalidTensor,
    SessionNotFound,
    StudentNameTaken,
    TeachingError,
)
from teaching_protocol.verbs import SessionSettings
from tests.integration.gate import poll
from tests.unit.teacher_server.tiny_models import tiny_inputs

WIDTH = 8
Open = Callable[..., InProcessTeacher]


@pytest.fixture
def actor(bert: FrozenTeacher) -> TeacherActor:
    return local_teacher(bert)


@pytest.fixture
def student(actor: TeacherActor) -> Open:
    def build(**options: Any) -> InProcessTeacher:
        return InProcessTeacher(actor, **{"student": "ann", "message_width": WIDTH, "entry": 1, "exit": 3} | options)

    return build


def gathered(teacher: InProcessTeacher) -> dict[str, torch.Tensor]:
    return {name: value for name, value in load(teacher.export_state()).items() if name.startswith("gathered.")}


def test_gradients_are_those_of_autograd_through_the_whole(bert: FrozenTeacher, student: Open) -> None:
    message, mask = torch.randn(2, 3, WIDTH), torch.tensor([[True] * 3, [True, False, True]])
    ours, plain = message.clone().requires_grad_(), message.clone().requires_grad_()
    with student(seed=4) as teacher:
        answer = teacher(ours, mask=mask)
        answer.pow(3).sum().backward()
        found = gathered(teacher)
    codec = TeacherCodec(CodecShape(32, 32, WIDTH), seed=4)
    settings = SessionSettings(message_width=WIDTH, entry=1, exit=3)
    talk = Conversation(codec, settings).ports({"message": plain, "message_mask": mask}, None, ("answer",))
    (found_alone,) = together([talk], answering(bert))
    assert not isinstance(found_alone, Exception)
    exact = found_alone["answer"]
    exact.pow(3).sum().backward()
    torch.testing.assert_close(answer, exact)
    torch.testing.assert_close(ours.grad, plain.grad)
    for place, parameter in enumerate(codec.parameters()):
        torch.testing.assert_close(found[f"gathered.{place}"], parameter.grad)


def test_the_codec_gathers_even_when_nothing_sent_requires_a_gradient(student: Open) -> None:
    with student() as teacher:
        answer = teacher(torch.randn(1, 2, WIDTH))
        assert answer.requires_grad
        answer.pow(3).sum().backward()
        assert gathered(teacher)


def test_a_teacher_is_part_of_a_module_without_weights_of_its_own(student: Open) -> None:
    with student() as teacher:
        model = nn.Sequential(nn.Linear(4, WIDTH), teacher, nn.Linear(WIDTH, 1))
        assert len(list(model.parameters())) == 4
        model(torch.randn(2, 3, 4)).sum().backward()
        assert all(parameter.grad is not None for parameter in model.parameters())


def test_only_the_outputs_used_send_a_gradient(student: Open) -> None:
    message = torch.randn(2, 3, WIDTH, requires_grad=True)
    inputs = {"message": message, **tiny_inputs("bert", 2, 3)}
    with student() as teacher:
        found = teacher.forward_ports(inputs, ["answer", "state_consistency", "logits", "attention_mask"])
        assert not found["logits"].requires_grad
        assert found["attention_mask"].dtype == torch.bool
        found["state_consistency"].backward()
        assert message.grad is not None
        assert not message.grad.any()
        assert gathered(teacher)


def test_an_output_used_twice_and_one_unused(student: Open) -> None:
    message = torch.randn(2, 3, WIDTH, requires_grad=True)
    with student() as teacher:
        answer = teacher(message)
        (answer.sum() + (answer * 2).pow(2).sum()).backward()
        twice, message.grad = message.grad, None
        answer = teacher(message)
        torch.autograd.backward(answer, 1 + 8 * answer.detach())
        torch.testing.assert_close(message.grad, twice)


def test_half_precision_students(student: Open) -> None:
    message = torch.randn(2, 3, WIDTH, dtype=torch.bfloat16, requires_grad=True)
    with student() as teacher:
        answer = teacher(message)
        answer.sum().backward()
    assert answer.dtype == torch.float32
    assert message.grad is not None
    assert message.grad.dtype == torch.bfloat16


def test_a_graph_serves_one_backward(student: Open) -> None:
    with student() as teacher:
        total = teacher(torch.randn(1, 2, WIDTH, requires_grad=True)).sum()
        total.backward(retain_graph=True)
        with pytest.raises(CallFinished, match="a graph serves one Backward"):
            total.backward()


def test_without_gradients_the_server_keeps_nothing(actor: TeacherActor, student: Open) -> None:
    with student() as teacher:
        with torch.no_grad():
            teacher(torch.randn(1, 2, WIDTH))
        found = teacher.observe(tiny_inputs("bert", 2, 4), ["logits", "hidden.3", "pooled"])
        teacher.forward_ports(tiny_inputs("bert", 2, 4), ["logits"])
        assert not any(value.requires_grad for value in found.values())
        assert not actor.sessions.live()[0].calls


def test_only_wanted_gradients_are_asked_for(actor: TeacherActor, student: Open) -> None:
    gate = torch.ones(1, requires_grad=True)
    with student() as teacher:
        teacher.forward_ports({"message": torch.randn(1, 2, WIDTH), "message_gate": gate}, ["answer"])[
            "answer"
        ].sum().backward()
        call = next(iter(actor.sessions.live()[0].calls.values()))
        assert call.finished
        assert gate.grad is not None
        soft = {"input_ids": torch.tensor([[5]]), "attention_mask": torch.ones(1, 1, requires_grad=True)}
        with pytest.raises(InvalidTensor, match="only float message ports that were sent have a gradient"):
            teacher.forward_ports({"message": torch.randn(1, 2, WIDTH), **soft}, ["answer"])


def test_steps_are_counted_and_states_continue(student: Open) -> None:
    with student() as teacher:
        assert teacher.steps == 0
        for _ in range(2):
            teacher(torch.randn(1, 2, WIDTH)).pow(3).sum().backward()
            assert teacher.step(lr=0.1, grad_scale=0.5, max_grad_norm=1.0) > 0
        blob = teacher.export_state()
        teacher.step(lr=0.1)
        assert teacher.steps == 3
        assert teacher.import_state(blob) == teacher.steps == 2
        teacher.step(lr=0.1)
    other = student()
    assert other.enroll(state=blob) is other
    assert other.steps == 2
    other.leave()


def test_taking_a_session_over(student: Open) -> None:
    old = student()
    old.enroll()
    with pytest.raises(StudentNameTaken):
        student().enroll()
    new = student()
    new.enroll(resume=old.session.session_id)
    assert (new.session.session_id, new.session.epoch) == (old.session.session_id, 2)
    old.leave()  # a fenced client cannot end the session
    assert new(torch.zeros(1, 1, WIDTH)).shape == (1, 1, WIDTH)
    new.leave()


def test_leaving_twice_is_harmless_and_enrolling_again_is_a_new_session(actor: TeacherActor, student: Open) -> None:
    teacher = student()
    with teacher:
        first = teacher.session
    teacher.leave()
    assert len(actor.sessions) == 0
    with pytest.raises(SessionNotFound, match="enrol again"):
        teacher(torch.zeros(1, 1, WIDTH))
    with teacher:
        assert teacher.session.session_id != first.session_id


def test_the_session_ends_when_the_block_raises(actor: TeacherActor, student: Open) -> None:
    with pytest.raises(KeyError), student():
        raise KeyError
    assert len(actor.sessions) == 0


def test_entry_and_exit_are_the_cards_unless_said(student: Open) -> None:
    with student(entry=2) as teacher:
        assert (teacher.settings.entry, teacher.settings.exit) == (2, 3)
    with InProcessTeacher(student()._session.transport, student="bob", message_width=4) as teacher:
        assert (teacher.settings.entry, teacher.settings.exit) == (teacher.card.entry, teacher.card.exit) == (1, 4)


def test_another_protocol_version_is_refused(actor: TeacherActor, student: Open) -> None:
    actor.card = dataclasses.replace(actor.card, protocol_version=99)
    with pytest.raises(IncompatibleTeacher, match="version 99, this client 1; install the same release"):
        student().enroll()


def test_the_heartbeat_keeps_the_lease(bert: FrozenTeacher) -> None:
    actor = local_teacher(bert, lease_s=0.15)
    teacher = InProcessTeacher(actor, student="ann", message_width=WIDTH)
    with teacher:
        session = actor.sessions.live()[0]
        first = session.lease_until
        poll(lambda: session.lease_until > first + 0.2, "the lease is renewed beyond its first end")
        assert actor.sessions.expired() == []
        assert teacher(torch.zeros(1, 1, WIDTH)).isfinite().all()


def test_seconds_are_counted(student: Open) -> None:
    with student() as teacher:
        teacher(torch.randn(1, 2, WIDTH)).sum().backward()
        assert 0 < teacher.seconds <= teacher.wait_s


def test_errors_of_a_backward_keep_their_class(student: Open) -> None:
    with student() as teacher:
        answer = teacher(torch.randn(1, 2, WIDTH, requires_grad=True))
        with pytest.raises(TeachingError, match="answer: 1 of 16 numbers are NaN"):
            (answer * torch.tensor([float("nan")] + [1.0] * 15).reshape(1, 2, 8)).sum().backward()
