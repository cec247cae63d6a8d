"""A batch that fails as a whole is run again job by job: only the culprit hears of it."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from teacher_server.jobs import Batch
from teacher_server.models.split import FrozenTeacher
from teaching_protocol import verbs
from teaching_protocol.errors import (
    InternalError,
    InvalidTensor,
    OutOfMemory,
    SessionNotFound,
    StaleEpoch,
    StepOutOfOrder,
    TeachingError,
)
from tests.calls import in_s
from tests.unit.teacher_server.rooms import Facts, Room, Wish, assert_same
from tests.unit.teacher_server.tiny_models import text_bytes, tiny_model

RETRIES, CULPRITS = "teacher_batch_retries_total", "teacher_batch_culprits_total"


def wishes(count: int = 3, tokens: int = 3, **settings: Any) -> list[Wish]:
    generator = torch.Generator().manual_seed(1)
    return [Wish({"message": torch.randn(2, tokens, 8, generator=generator)}, settings) for _ in range(count)]


def alone(teacher: FrozenTeacher, students: list[Wish], place: int) -> Facts:
    with Room(teacher, students) as room:
        return room.alone(place)


@contextmanager
def block(teacher: FrozenTeacher, hook: Callable[[torch.Tensor], None]) -> Iterator[None]:
    """Sees the states that enter the last block, and may raise."""
    family: Any = teacher.family
    handle = family.blocks[-1].register_forward_pre_hook(lambda _, arguments: hook(arguments[0]))
    try:
        yield
    finally:
        handle.remove()


def finish(room: Room, forwards: list[Any], answers: list[Any], places: tuple[int, ...]) -> dict[int, Facts]:
    requests = [room.wishes[place].backward(forwards[place], answers[place], place) for place in places]
    grads = room.run(requests)
    return {place: room.facts(place, answers[place], each) for place, each in zip(places, grads, strict=True)}


def test_a_shape_that_passed_the_checks() -> None:
    """A convolution sees masked tokens, which shows only where the body runs."""
    teacher = FrozenTeacher(tiny_model("resnet"), "resnet")
    students = wishes(3, tokens=16, entry=1, exit=3)
    students[1].inputs["message_mask"] = torch.arange(16).repeat(2, 1) < 9
    with Room(teacher, students) as room:
        forwards = room.forwards()
        assert len({room.job(request).bucket for request in forwards}) == 1, "nobody could have known"
        answers = room.run(forwards)
        assert isinstance(answers[1], InvalidTensor)
        assert (room.metric(RETRIES), room.metric(CULPRITS)) == (1, 1)
        found = finish(room, forwards, answers, (0, 2))
        assert room.metric("teacher_graph_recomputes_total") == 0
    for place, facts in found.items():
        assert_same(facts, alone(teacher, students, place))


def test_a_batch_that_has_no_room_goes_one_by_one(bert: FrozenTeacher) -> None:
    def narrow(states: torch.Tensor) -> None:
        if len(states) > 2:
            raise torch.OutOfMemoryError("no room for so many rows")

    students = wishes()
    with Room(bert, students) as room:
        forwards = room.forwards()
        with block(bert, narrow):
            answers = room.run(forwards)
            assert not [each for each in answers if isinstance(each, TeachingError)]
        assert (room.metric(RETRIES), room.metric(CULPRITS)) == (1, 0)
        found = finish(room, forwards, answers, (0, 1, 2))
    for place, facts in found.items():
        assert_same(facts, alone(bert, students, place))


def test_one_too_large_for_the_device_even_alone(bert: FrozenTeacher) -> None:
    students = wishes()
    students[2].inputs["message"] = torch.randn(5, 3, 8)

    def narrow(states: torch.Tensor) -> None:
        if len(states) > 4:
            raise torch.OutOfMemoryError("no room for so many rows")

    with Room(bert, students) as room, block(bert, narrow):
        answers = room.run(room.forwards())
        assert [isinstance(each, OutOfMemory) for each in answers] == [False, False, True]
        assert (room.metric(RETRIES), room.metric(CULPRITS)) == (1, 1)


def test_an_error_of_the_model_itself_is_told_to_the_one_it_concerns(bert: FrozenTeacher) -> None:
    def fragile(states: torch.Tensor) -> None:
        if bool((states.abs().amax((1, 2)) > 1e3).any()):
            raise ValueError("a secret of the server")

    students = wishes()
    with Room(bert, students) as room:
        with torch.no_grad():
            next(iter(room.actor.sessions.get(room.callers[1].session).codec.decoders.values()))[-1].bias.fill_(1e5)
        family: Any = bert.family
        handle = family.blocks[1].register_forward_pre_hook(lambda _, arguments: fragile(arguments[0]))
        forwards = room.forwards()
        try:
            answers = room.run(forwards)
        finally:
            handle.remove()
        assert isinstance(answers[1], InternalError)
        assert "secret" not in str(answers[1])
        found = finish(room, forwards, answers, (0, 2))
    for place, facts in found.items():
        assert_same(facts, alone(bert, students, place))


def test_a_backward_that_fails_as_a_whole_gathers_nothing_twice(bert: FrozenTeacher) -> None:
    """The first backward of the shared graph breaks; each is then run again from its message."""
    broken = iter([True])
    students = wishes()

    def breaking(grad: torch.Tensor) -> None:
        if next(broken, False):
            raise torch.OutOfMemoryError("no room for the backward")

    def watch(states: torch.Tensor) -> None:
        if states.requires_grad:
            states.register_hook(breaking)

    with Room(bert, students) as room:
        forwards = room.forwards()
        with block(bert, watch):
            answers = room.run(forwards)
        found = finish(room, forwards, answers, (0, 1, 2))
        assert (room.metric(RETRIES), room.metric(CULPRITS)) == (1, 0)
        assert room.metric("teacher_graph_recomputes_total") == 3
        assert room.graph_bytes == 0
    for place, facts in found.items():
        assert_same(facts, alone(bert, students, place))


def test_what_is_one_askers_fault_costs_the_others_nothing(bert: FrozenTeacher) -> None:
    """Faults that show before the body runs: no retry, one pass."""
    students = [
        Wish({"message": torch.randn(2, 3, 8), "text": text_bytes("good film", "bad")}, {"inject": "add"}),
        Wish({"message": torch.randn(2, 2, 8), "text": text_bytes("good", "bad film")}, {"inject": "add"}),
        Wish({"message": torch.randn(2, 2, 8), "text": torch.full((2, 4), 255, dtype=torch.uint8)}, {"inject": "add"}),
    ]
    with Room(bert, students) as room:
        answers = room.run(room.forwards())
        assert isinstance(answers[0], InvalidTensor)
        assert "cannot be added to the teacher's 2" in str(answers[0])
        assert isinstance(answers[1], verbs.ForwardReply)
        assert isinstance(answers[2], InvalidTensor)
        assert "UTF-8" in str(answers[2])
        assert room.metric(RETRIES) == 0


def test_those_who_left_or_were_fenced_while_they_waited(bert: FrozenTeacher) -> None:
    with Room(bert, wishes(3)) as room:
        jobs = [room.job(request) for request in room.forwards()]
        room.actor.leave(verbs.LeaveRequest(room.callers[0].session), in_s(5))
        resume = verbs.EnrollRequest("student-1", resume=room.callers[1].session.session_id)
        room.callers[1].session = room.actor.enroll(resume, in_s(5)).session
        room.actor._engine.run(Batch(tuple(jobs)))
        assert isinstance(jobs[0].future.exception(0), SessionNotFound)
        assert isinstance(jobs[1].future.exception(0), StaleEpoch)
        assert jobs[2].future.result(0).outputs


@pytest.mark.parametrize("field", ["answer", "mood"])
def test_a_gradient_that_fits_no_output(bert: FrozenTeacher, field: str) -> None:
    students = wishes(2)
    with Room(bert, students) as room:
        forwards = room.forwards()
        answers = room.run(forwards)
        requests = [students[place].backward(forwards[place], answers[place], place) for place in (0, 1)]
        bad = verbs.BackwardRequest(requests[0].session, "bad", forwards[0].call_id, {field: torch.zeros(1, 1, 1)})
        replies = room.run([bad, requests[1]])
        assert isinstance(replies[0], InvalidTensor)
        found = room.facts(1, answers[1], replies[1])
        assert room.metric(RETRIES) == 0
    assert_same(found, alone(bert, students, 1))


def test_each_job_is_told_its_share_of_the_time(bert: FrozenTeacher) -> None:
    students = wishes(1) + wishes(1, tokens=6)
    with Room(bert, students) as room:
        jobs = [room.job(request) for request in room.forwards()]
        assert [job.tokens for job in jobs] == [6, 12]
        room.actor._engine.run(Batch(tuple(jobs)))
        one, other = (job.timing.compute_s for job in jobs)
        assert other == pytest.approx(2 * one)
        assert one > 0
        steps = [room.job(verbs.StepRequest(caller.session, 1, 0.1)) for caller in room.callers]
        room.actor._engine.run(Batch(tuple(steps)))
        assert steps[0].timing.compute_s == steps[1].timing.compute_s > 0


# Steps


OPTIMIZERS = [
    verbs.OptimizerSettings("adamw"),
    verbs.OptimizerSettings("adamw", weight_decay=0.3),
    verbs.OptimizerSettings("adam"),
    verbs.OptimizerSettings("sgd", momentum=0.9),
    verbs.OptimizerSettings("adamw"),
    verbs.OptimizerSettings("adamw"),
]


def steps(room: Room, numbers: dict[int, int]) -> list[verbs.StepRequest]:
    rates = {place: 0.01 if place != 5 else 0.02 for place in numbers}
    return [
        verbs.StepRequest(room.callers[place].session, number, rates[place], 0.5, 0.1 * place)
        for place, number in numbers.items()
    ]


def test_steps_together_are_bit_for_bit_steps_one_by_one(bert: FrozenTeacher) -> None:
    """Each with its own count, learning rate and clipping; who does not step is untouched."""
    students = [Wish(wish.inputs, {"optimizer": each}) for wish, each in zip(wishes(6), OPTIMIZERS, strict=True)]
    rounds: list[dict[int, int]] = [
        {0: 1, 2: 1, 3: 1, 5: 1},
        {0: 2, 1: 1, 3: 2, 4: 1, 5: 2},
        dict(enumerate((3, 2, 2, 3, 2, 3))),
    ]

    def train(is_together: bool) -> tuple[list[bytes], list[Any]]:
        replies = []
        with Room(bert, students) as room:
            for numbers in rounds:
                for place in numbers:
                    room.alone(place)
                before = {place: room.callers[place].export() for place in range(6) if place not in numbers}
                requests = steps(room, numbers)
                replies += room.run(requests) if is_together else [room.run([each])[0] for each in requests]
                assert all(room.callers[place].export() == state for place, state in before.items())
            return [caller.export() for caller in room.callers], replies

    together, one_by_one = train(True), train(False)
    assert together == one_by_one
    assert not [each for each in together[1] if isinstance(each, TeachingError)]


def test_a_step_that_cannot_be_leaves_its_session_and_the_others_go_on(bert: FrozenTeacher) -> None:
    students = wishes(4)
    with Room(bert, students) as room:
        for place in range(4):
            room.alone(place)
        session = room.actor.sessions.get(room.callers[1].session)
        session.gathered[0] = torch.full_like(session.gathered[0], float("inf"))
        states = [caller.export() for caller in room.callers]
        requests = [verbs.StepRequest(caller.session, 1, 0.1) for caller in room.callers]
        requests[2] = verbs.StepRequest(room.callers[2].session, 7, 0.1)
        replies = room.run(requests)
        assert "grad_scale 0" in str(replies[1])
        assert isinstance(replies[2], StepOutOfOrder)
        assert [room.callers[place].export() == states[place] for place in range(4)] == [False, True, True, False]
        skipped = room.run([verbs.StepRequest(room.callers[1].session, 1, 0.1, 0.0), requests[0]])
        assert (skipped[0].grad_norm, skipped[1]) == (0.0, replies[0])
        assert not any(
            parameter.grad is not None for each in room.actor.sessions.live() for parameter in each.parameters()
        )


def test_what_did_not_fit_holds_no_memory_while_the_others_run(bert: FrozenTeacher) -> None:
    """An error's frames keep the tensors they worked on; those of a job without room are gone before the next begins."""
    held: list[weakref.ref[torch.Tensor]] = []
    alive: list[bool] = []

    def narrow(states: torch.Tensor) -> None:
        alive.append(any(each() is not None for each in held))
        if len(states) == 5:
            held.append(weakref.ref(states))
        if len(states) > 4:
            raise torch.OutOfMemoryError("no room for so many rows")

    students = wishes()
    students[1].inputs["message"] = torch.randn(5, 3, 8)
    with Room(bert, students) as room, block(bert, narrow):
        answers = room.run(room.forwards())
        assert [isinstance(each, OutOfMemory) for each in answers] == [False, True, False]
    assert len(held) == 2
    assert not alive[-1]
