"""A session lost at any place of any run, and brought forward: the same gradients, the same codec, to the bit."""

from __future__ import annotations

import itertools
import time
from collections.abc import Collection, Sequence
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from student_client.loops.continuity import Continuity
from student_client.teachers.pausing import finished
from student_client.teachers.remote import InProcessTeacher
from student_client.teachers.teachers import Absence, Member, Teachers
from teacher_server.actor import TeacherActor
from teacher_server.local import local_teacher
from teaching_protocol.errors import SessionNotFound
from teaching_protocol.verbs import Call, LeaveRequest
from tests.unit.teacher_server.tiny_models import text_bytes

NAMES = (f"student-{number}" for number in itertools.count())


@pytest.fixture(scope="module")
def actor(model_folder: Any) -> TeacherActor:
    return local_teacher(str(model_folder("bert")), device="cpu", deterministic=True)


def trained(
    actor: TeacherActor, microbatches: Sequence[int], lost: Collection[int], every: int, size_bytes: int = 2**28
) -> tuple[list[torch.Tensor], bytes, Continuity]:
    """Gradients of all messages, and the session in the end. The session is ended behind the student's back at places
    `lost`, which are counted before each Forward, Backward, observation and Step."""
    teacher = InProcessTeacher(actor, student=next(NAMES), message_width=8, seed=3).enroll()
    member = Member(teacher, ("text",))
    teachers = Teachers([member], absence=Absence(patience_s=20.0))
    continuity = Continuity(teachers, every, size_bytes)
    continuity.begin()
    places, draw, grads = itertools.count(), torch.Generator().manual_seed(1), []

    def lose() -> None:
        if next(places) in lost:
            actor.leave(LeaveRequest(teacher.session), Call(time.monotonic() + 5))

    for step, count in enumerate(microbatches):
        for _ in range(count):
            message = torch.randn(2, 3, 8, generator=draw).requires_grad_()
            inputs = {"message": message, "text": text_bytes("good film", "bad")}
            lose()
            answer = finished(teachers.pausing_ask_first(inputs, ["answer"]))["answer"]
            lose()
            answer.square().mean().backward()
            grads.append(message.grad)
        lose()
        teachers.step(lr=1e-2 / (step + 1), max_grad_norm=1.0)
        continuity.stepped()
    state = teachers.export_states()[0]
    teacher.leave()
    return [grad for grad in grads if grad is not None], state, continuity


@settings(max_examples=8, deadline=None)
@given(
    microbatches=st.lists(st.integers(1, 3), min_size=1, max_size=4),
    lost=st.sets(st.integers(0, 28), max_size=6),
    every=st.integers(1, 5),
)
@example(microbatches=[2, 2, 2], lost=set(range(15)), every=2)
def test_lost_anywhere_is_as_never_lost(
    actor: TeacherActor, microbatches: list[int], lost: set[int], every: int
) -> None:
    whole, broken = (trained(actor, microbatches, at, every) for at in (set[int](), lost))
    assert all(torch.equal(*pair) for pair in zip(whole[0], broken[0], strict=True))
    assert whole[1] == broken[1]
    assert whole[2].losses.recoveries == 0
    last = sum(2 * count + 1 for count in microbatches)
    assert broken[2].losses.recoveries == len({place for place in lost if place < last})


def test_what_is_kept_has_a_limit(actor: TeacherActor) -> None:
    """Beyond it states are taken at once, however many steps may pass; the result is the same."""
    whole, small = (trained(actor, [1] * 5, {7}, 1000, size) for size in (2**28, 1))
    assert whole[1] == small[1]
    assert sum(sent.size_bytes for sent in small[2]._sent) == 0
    assert 0 < sum(sent.size_bytes for sent in whole[2]._sent) < 2**14


def test_without_continuity_a_loss_is_an_error(actor: TeacherActor) -> None:
    teacher = InProcessTeacher(actor, student=next(NAMES), message_width=8).enroll()
    actor.leave(LeaveRequest(teacher.session), Call(time.monotonic() + 5))
    with pytest.raises(SessionNotFound):
        Teachers([Member(teacher, ("text",))]).step(lr=0.1)
