"""Calls that the network delivers late or once more, by a relay that keeps them: the session is as if they had never come."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from student_client import RemoteTeacher
from teacher_server.models.split import FrozenTeacher
from teaching_protocol import verbs
from teaching_protocol.channel import error_from
from teaching_protocol.errors import CallConflict, DeadlineExceeded, StepOutOfOrder, TeachingError
from teaching_protocol.wire import read
from tests.calls import WIDTH, Caller, in_s
from tests.chaos.relay import Post, keeping
from tests.integration.gate import poll
from tests.integration.processes import Address
from tests.unit.teacher_server.desk import Desk


@pytest.fixture
def post(servers: dict[str, Address]) -> Iterator[Post]:
    with keeping(servers["bert"].name) as found:
        yield found


@pytest.fixture
def student(post: Post) -> Iterator[RemoteTeacher]:
    with RemoteTeacher(
        post.address, student="late", message_width=WIDTH, compression="none", patience_s=0.2
    ) as teacher:
        yield teacher


def make_step(teacher: RemoteTeacher) -> None:
    teacher(torch.linspace(-1, 1, 2 * 3 * WIDTH).reshape(2, 3, WIDTH)).pow(2).sum().backward()
    teacher.step(lr=0.1)


def error_of(found: object) -> TeachingError | None:
    """The error of the tree behind what the relay got, if it is one."""
    if isinstance(found, bytes):
        return None
    return error_from(tuple(found.trailing_metadata()), found.details())  # type: ignore[attr-defined]


def test_an_import_that_comes_once_more_after_later_steps(student: RemoteTeacher, post: Post) -> None:
    make_step(student)
    old = student.export_state()
    make_step(student)
    assert student.import_state(old) == 1
    for _ in range(2):
        make_step(student)
    newest = student.export_state()
    post.deliver("Import")
    assert student.export_state() == newest != old
    make_step(student)
    assert student.steps == 4


def test_an_import_that_comes_once_more_at_once(student: RemoteTeacher, post: Post) -> None:
    """As from a client whose first reply was lost: the same reply, and what was gathered since stays gathered."""
    make_step(student)
    student.import_state(student.export_state())
    answer = student(torch.ones(1, 2, WIDTH))
    answer.sum().backward()
    gathered = student.export_state()
    again = post.deliver("Import")
    assert isinstance(again, bytes)
    assert read(verbs.ImportReply, again).session == student.session
    assert student.export_state() == gathered
    assert student.step(lr=0.1) > 0


def test_an_import_given_up_that_comes_after_later_steps(student: RemoteTeacher, post: Post) -> None:
    """Its first delivery is the late one: the client went on without it."""
    fresh = student.export_state()
    make_step(student)
    post.held.add("Import")
    with pytest.raises(DeadlineExceeded):
        student.import_state(fresh)
    make_step(student)
    newest = student.export_state()
    found = error_of(post.deliver("Import"))
    assert isinstance(found, StepOutOfOrder), found
    assert "was sent after step 1, but the session is at step 2" in str(found)
    assert student.export_state() == newest


@pytest.mark.parametrize("method", ["Forward", "Backward", "Step", "Import"])
def test_what_was_sent_before_an_import_is_refused_after_it(student: RemoteTeacher, post: Post, method: str) -> None:
    """A Step of the same number as the one that is next would else be taken for it."""
    fresh = student.export_state()
    student.import_state(fresh)
    make_step(student)
    student.import_state(fresh)
    post.deliver(method, 0)
    assert student.export_state() == fresh
    make_step(student)
    assert student.steps == 1


def test_an_import_is_tried_again_after_its_reply_was_lost(student: RemoteTeacher, post: Post) -> None:
    make_step(student)
    state = student.export_state()
    make_step(student)
    post.held.add("Import")
    with pytest.raises(DeadlineExceeded):
        student.import_state(state)
    assert error_of(post.deliver("Import")) is None  # it was taken, and nobody heard
    post.held.clear()
    assert student.import_state(state) == 1
    make_step(student)
    assert student.steps == 2


def test_an_enroll_whose_reply_was_lost_is_not_in_the_way(student: RemoteTeacher, post: Post) -> None:
    """The next attempt gets the session that the first has opened, and does not wait for its lease to end."""
    make_step(student)
    state = student.export_state()
    student.end()
    post.held.add("Enroll")
    with pytest.raises(DeadlineExceeded):
        student.enroll(state)
    first = post.deliver("Enroll")
    assert isinstance(first, bytes)
    post.held.clear()
    student.enroll(state)
    assert student.session == read(verbs.EnrollReply, first).session
    assert student.export_state() == state
    student.end()
    student.enroll(state)
    assert student.session != read(verbs.EnrollReply, first).session


def test_one_id_is_one_import(servers: dict[str, Address]) -> None:
    with Caller(servers["bert"].name, "twice") as caller:
        fresh = caller.export()
        first = verbs.ImportRequest(caller.session, fresh, "import", 0)
        caller.session = caller.teacher.import_(first, in_s(5)).session
        caller.backward(caller.forward()[0])
        gathered = caller.export()
        other = verbs.ImportRequest(first.session, fresh[:-4] + bytes(4), "import", 0)
        with pytest.raises(CallConflict, match="used before"):
            caller.teacher.import_(other, in_s(5))
        assert caller.teacher.import_(first, in_s(5)).session == caller.session
        assert caller.export() == gathered != fresh


def test_an_import_without_an_id_is_as_it_was(servers: dict[str, Address]) -> None:
    """Clients of before know of no new epoch."""
    with Caller(servers["bert"].name, "before") as caller:
        fresh = caller.export()
        for _ in range(2):
            caller.backward(caller.forward()[0])
            caller.step(1)
            reply = caller.teacher.import_(verbs.ImportRequest(caller.session, fresh), in_s(5))
            assert (reply.step, reply.session) == (0, caller.session)
            assert caller.export() == fresh


def test_who_takes_a_session_over_waits_for_what_runs(bert: FrozenTeacher) -> None:
    """A Step that runs at that moment is over before the session is handed on, so that its number is known."""
    desk, door, entered = Desk(bert), threading.Event(), threading.Event()
    try:
        old = Caller(desk.actor, "taken").__enter__()
        old.backward(old.forward()[0])
        session = desk.actor.sessions.live()[0]

        def hold(*_: object) -> None:
            entered.set()
            assert door.wait(20)

        session.optimizer.register_step_pre_hook(hold)
        with ThreadPoolExecutor(2) as pool:
            step = pool.submit(old.step, 1)
            assert entered.wait(20)
            request = verbs.EnrollRequest("taken", resume=old.session.session_id)
            late = pool.submit(desk.actor.enroll, request, in_s(0.05)).exception(20)
            assert isinstance(late, DeadlineExceeded)
            taken = pool.submit(desk.actor.enroll, request, in_s(20))
            poll(lambda: desk.scheduler._admission.held == 2 or taken.done(), "it is asked")
            assert not taken.done()
            door.set()
            assert step.result(20).step == 1
            assert taken.result(20).step == 1
    finally:
        door.set()
        desk.close()
