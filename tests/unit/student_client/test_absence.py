"""Teachers of a committee that get lost and come back: fail, wait and skip, by real sessions that are really gone."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
import torch

from student_client.connection.transport import GrpcTransport
from student_client.methods import Methods
from student_client.teachers.remote import InProcessTeacher
from student_client.teachers.teachers import Absence, Member, Teachers
from task_data import Batch
from teacher_server.actor import TeacherActor
from teacher_server.local import local_teacher
from teaching_protocol.errors import IncompatibleTeacher, OutOfMemory, SessionNotFound, TeacherUnavailable
from tests.integration.gate import poll
from tests.unit.student_client.committee_setup import committee, committee_config, module_of, teachers_of, wide_bert
from tests.unit.student_client.method_setup import frozen, one_batch, student_and_data

CONFIG = committee_config(message_dropout=0.0)


@pytest.fixture
def two(tmp_path: Path) -> list[TeacherActor]:
    return teachers_of("text", tmp_path)


@pytest.fixture
def student_and_batch() -> tuple[Any, Any, Batch]:
    student, data = student_and_data("text")
    student.eval()
    return student, data, one_batch(student, data)


def absence(rule: Any, said: list[str] | None = None, **seconds: float) -> Absence:
    known = {"wait_s": 20.0, "retry_s": 0.0} | seconds
    return Absence(rule, known["wait_s"], known["retry_s"], [].append if said is None else said.append)


def take_down(member: Member) -> None:
    """From now on nobody answers at the teacher's address."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    member.teacher._session.transport = GrpcTransport(f"127.0.0.1:{port}", "none", patience_s=0.05)


def put_up(member: Member, actor: TeacherActor) -> None:
    """A teacher answers there; a fresh actor is a restarted server, the old one a network that was broken."""
    member.teacher._session.transport = actor


def lose_session(actor: TeacherActor) -> None:
    actor.end(actor.sessions.live()[0], "lease")


def step(methods: Methods, student: Any, batch: Batch, teachers: Teachers) -> dict[str, float]:
    outcome = methods.loss(student, batch, teachers)
    outcome.loss.backward()
    return {**outcome.monitors, **teachers.step(lr=0.01)}


def grads_of(methods: Methods, place: int) -> list[torch.Tensor | None]:
    module = module_of(methods)
    asked = module.question_augmenter.questions[place].parameters()
    return [parameter.grad for parameter in asked]


def test_fail_raises_at_once_and_names_the_teacher(two: list[TeacherActor], student_and_batch: Any) -> None:
    student, data, batch = student_and_batch
    with committee(two, student, data, CONFIG) as (methods, teachers):
        take_down(teachers[1])
        with pytest.raises(TeacherUnavailable, match="no teacher answers at") as failure:
            methods.loss(student, batch, teachers)
        assert failure.value.__notes__ == ["this was the teacher 'teacher 1'"]
        put_up(teachers[1], two[1])
        lose_session(two[1])
        with pytest.raises(SessionNotFound):
            methods.loss(student, batch, teachers)


def test_skip_goes_on_without_one_and_lets_it_join_again(two: list[TeacherActor], student_and_batch: Any) -> None:
    student, data, batch = student_and_batch
    said: list[str] = []
    with committee(two, student, data, CONFIG, absence("skip", said)) as (methods, teachers):
        assert step(methods, student, batch, teachers)["teachers_missing"] == 0.0
        kept = teachers.export_states()
        asked = teachers[0].teacher.costs[1]
        take_down(teachers[1])
        for _ in range(2):
            alone = step(methods, student, batch, teachers)
            assert alone["teachers_missing"] == 1.0
            assert (alone["importance.0"], alone["importance.1"]) == (1.0, 0.0)
            assert alone["teacher_grad_norm"] > 0
            assert "teacher_grad_norm.1" not in alone
        assert teachers.account.rows_saved == 0, "rows of a missing teacher are lost, not saved"
        assert teachers[0].teacher.costs[1] == asked + 3 * len(batch), "the others are asked anew where one gets lost"
        assert teachers.export_states()[1] == kept[1], "the last state known of a missing teacher"
        put_up(teachers[1], local_teacher(two[1]._engine.teacher))
        poll(lambda: len(teachers.present()) == 2, "the teacher joins again")
        assert teachers[1].teacher.export_state() == kept[1], "with the last state known"
        both = step(methods, student, batch, teachers)
        assert both["teachers_missing"] == 0.0
        assert both["importance.1"] > 0
        assert both["teacher_grad_norm.1"] > 0
    assert len(said) == 2, "it is said once that it is missing, and once that it is there"
    assert "warning: the teacher 'teacher 1' is missing (no teacher answers at" in said[0]
    assert "is there again and goes on with the last state known of its codec" in said[1]


def test_a_backward_lost_is_skipped_with_gradients_of_zero(two: list[TeacherActor], student_and_batch: Any) -> None:
    student, data, batch = student_and_batch
    with committee(two, student, data, CONFIG, absence("skip")) as (methods, teachers):
        outcome = methods.loss(student, batch, teachers)
        lose_session(two[1])
        outcome.loss.backward()
        assert all(grad is not None and not grad.any() for grad in grads_of(methods, 1))
        assert any(grad is not None and grad.any() for grad in grads_of(methods, 0))
        watched = teachers.step(lr=0.01)
        assert watched["teachers_missing"] == 1.0
        assert watched["teacher_grad_norm"] > 0
        poll(lambda: len(teachers.present()) == 2, "the teacher joins again, with a fresh codec")
        assert step(methods, student, batch, teachers)["teacher_grad_norm.1"] > 0


def test_a_step_lost_is_skipped(two: list[TeacherActor], student_and_batch: Any) -> None:
    student, data, batch = student_and_batch
    with committee(two, student, data, CONFIG, absence("skip")) as (methods, teachers):
        methods.loss(student, batch, teachers).loss.backward()
        take_down(teachers[0])
        watched = teachers.step(lr=0.01)
        assert watched.keys() == {"teacher_grad_norm.1", "teachers_missing"}


def test_without_any_teacher_even_skip_fails(two: list[TeacherActor], student_and_batch: Any) -> None:
    student, data, batch = student_and_batch
    sentence = "none of the 2 teachers can be reached, expected one at least; start them again"
    with committee(two, student, data, CONFIG, absence("skip")) as (methods, teachers):
        take_down(teachers[0])
        step(methods, student, batch, teachers)
        outcome = methods.loss(student, batch, teachers)
        take_down(teachers[1])
        with pytest.raises(TeacherUnavailable, match=sentence):
            outcome.loss.backward()
        with pytest.raises(TeacherUnavailable, match=sentence):
            methods.loss(student, batch, teachers)


def test_a_session_that_lives_is_taken_up_again_and_the_step_it_lost_is_let_go(
    two: list[TeacherActor], student_and_batch: Any
) -> None:
    """The teacher has no room for a while: its session, and the codec in it, are still there."""
    student, data, batch = student_and_batch

    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("no room")

    with committee(two, student, data, CONFIG, absence("skip")) as (methods, teachers):
        step(methods, student, batch, teachers)
        before = teachers[1].teacher.session
        methods.loss(student, batch, teachers).loss.backward()
        assert two[1].sessions.live()[0].gathered
        hook = two[1]._engine.teacher.family.blocks[-1].register_forward_pre_hook(full)
        assert step(methods, student, batch, teachers)["teachers_missing"] == 1.0
        assert isinstance(teachers[1].lost, OutOfMemory)
        hook.remove()
        poll(lambda: len(teachers.present()) == 2, "the teacher joins again")
        assert teachers[1].teacher.session.session_id == before.session_id
        assert teachers[1].teacher.session.epoch == before.epoch + 1
        assert not two[1].sessions.live()[0].gathered
        assert teachers[1].teacher.steps == two[1].sessions.live()[0].step
        assert step(methods, student, batch, teachers)["teacher_grad_norm.1"] > 0


@pytest.mark.parametrize("lost_in", ["forward", "backward", "step", "export"])
def test_wait_goes_on_where_it_was(two: list[TeacherActor], student_and_batch: Any, lost_in: str) -> None:
    """A restarted teacher gets the last known state, so that what it answers is what it would have answered."""
    student, data, batch = student_and_batch
    said: list[str] = []
    found = []
    for breaks in (True, False):
        with committee(two, student, data, CONFIG, absence("wait", said)) as (methods, teachers):
            step(methods, student, batch, teachers)
            states = teachers.export_states()
            methods.zero_grad()

            def at(place: str, lose: bool = breaks) -> None:
                if lose and place == lost_in:
                    lose_session(two[1])

            at("forward")
            outcome = methods.loss(student, batch, teachers)
            at("backward")
            outcome.loss.backward()
            at("step")
            norms = teachers.step(lr=0.01)
            at("export")
            after = teachers.export_states()
            found.append((outcome.loss.detach(), [grad for place in (0, 1) for grad in grads_of(methods, place)]))
            assert "teachers_missing" not in norms
            if breaks and lost_in == "export":
                assert after[1] == states[1]
            assert teachers[1].teacher.steps == (1 if breaks and lost_in == "export" else 2)
    (loss, grads), (exact, exact_grads) = found
    assert torch.equal(loss, exact)
    for one, other in zip(grads, exact_grads, strict=True):
        assert one is not None
        assert other is not None
        torch.testing.assert_close(one, other)
    assert any(
        "the teacher 'teacher 1' is missing" in sentence and "waiting up to 20 s" in sentence for sentence in said
    )


def test_wait_gives_up_after_its_time(two: list[TeacherActor], student_and_batch: Any) -> None:
    student, data, batch = student_and_batch
    with committee(two, student, data, CONFIG, absence("wait", wait_s=0.3)) as (methods, teachers):
        take_down(teachers[1])
        with pytest.raises(TeacherUnavailable, match=r"'teacher 1' did not come back within 0\.3 s.*raise .*wait_s"):
            methods.loss(student, batch, teachers)


def test_wait_gives_up_on_a_teacher_that_comes_back_and_fails_again(
    two: list[TeacherActor], student_and_batch: Any
) -> None:
    student, data, batch = student_and_batch

    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("no room")

    with committee(two, student, data, CONFIG, absence("wait", wait_s=0.3)) as (methods, teachers):
        two[1]._engine.teacher.family.blocks[-1].register_forward_pre_hook(full)
        with pytest.raises(TeacherUnavailable, match=r"did not come back within 0\.3 s \(.*has no room"):
            methods.loss(student, batch, teachers)


@pytest.mark.parametrize("rule", ["skip", "wait"])
def test_another_teacher_at_the_address_is_refused(two: list[TeacherActor], student_and_batch: Any, rule: str) -> None:
    student, data, batch = student_and_batch

    def trains() -> None:
        while True:
            step(methods, student, batch, teachers)

    with committee(two, student, data, CONFIG, absence(rule)) as (methods, teachers):
        step(methods, student, batch, teachers)
        put_up(teachers[1], local_teacher(frozen("text")))
        with pytest.raises(IncompatibleTeacher, match=r"serves now where .* did before; serve the same weights again"):
            trains()


def test_what_the_teacher_refuses_is_raised_under_every_rule(two: list[TeacherActor], student_and_batch: Any) -> None:
    student, data, batch = student_and_batch
    for rule in ("fail", "wait", "skip"):
        with committee(two, student, data, CONFIG, absence(rule)) as (methods, teachers):
            teachers[1].ports = ()
            with pytest.raises(Exception, match="only a message was sent"):
                methods.loss(student, batch, teachers)


def test_a_teacher_that_was_never_there_joins_with_the_state_of_the_checkpoint() -> None:
    """Down when the run is resumed: its card is unknown."""
    actor, late = local_teacher(frozen("text")), local_teacher(wide_bert())
    options: dict[str, Any] = {"message_width": 16, "message_tokens": 2, "answer_from": "message_and_input"}
    members = [
        Member(InProcessTeacher(actor, student="s", **options), ("text",), place, f"t{place}") for place in (0, 1)
    ]
    with InProcessTeacher(late, student="s", **options) as earlier:
        earlier.step(lr=0.1)
        state = earlier.export_state()
    take_down(members[1])
    teachers = Teachers(members, absence=absence("skip"))
    teachers.enroll()
    assert [member.is_missing for member in members] == [False, True]
    assert [card.family for card in teachers.cards] == ["bert", ""]
    teachers.import_states((members[0].teacher.export_state(), state))
    put_up(members[1], late)
    poll(lambda: len(teachers.present()) == 2, "it joins")
    assert members[1].teacher.export_state() == state
    assert teachers.cards[1].model_name == "wide"
    teachers.leave()
    assert len(actor.sessions) == len(late.sessions) == 0


def test_leaving_while_a_teacher_is_looked_for_opens_no_session_behind(
    two: list[TeacherActor], student_and_batch: Any
) -> None:
    student, data, batch = student_and_batch
    with committee(two, student, data, CONFIG, absence("skip")) as (methods, teachers):
        take_down(teachers[1])
        step(methods, student, batch, teachers)
        put_up(teachers[1], two[1])
        teachers.present()
    assert [len(actor.sessions) for actor in two] == [0, 0]
