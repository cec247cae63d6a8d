from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from teacher_server.sessions.codecs import CodecShape, TeacherCodec
from teacher_server.sessions.replies import Replies
from teacher_server.sessions.sessions import Session, Sessions, new_session_id
from teaching_protocol.errors import LeaseExpired, Overloaded, SessionNotFound, StaleEpoch, StudentNameTaken
from teaching_protocol.verbs import ForwardRequest, SessionRef, SessionSettings


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def session(student: str = "ann", name: str = "") -> Session:
    codec = TeacherCodec(CodecShape(4, 4, 2), 0)
    optimizer = torch.optim.SGD(codec.parameters())
    return Session(name or new_session_id(), student, SessionSettings(), codec, optimizer, Replies(100))


def table(limit: int = 10) -> tuple[Sessions, Clock]:
    clock = Clock()
    return Sessions(60.0, lambda: limit, clock=clock), clock


def test_ids_are_long_and_differ() -> None:
    ids = {new_session_id() for _ in range(100)}
    assert len(ids) == 100
    assert all(re.fullmatch("[0-9a-f]{32}", each) for each in ids)


def test_a_name_is_taken_until_its_session_ends() -> None:
    sessions, _ = table()
    first = session()
    sessions.add(first)
    for attempt in (lambda: sessions.enrolled("ann", "call"), lambda: sessions.add(session())):
        with pytest.raises(StudentNameTaken, match="'ann' has a live session"):
            attempt()
    assert sessions.enrolled("bob", "call") is None
    assert sessions.remove(first, "leave")
    assert not sessions.remove(first, "leave")
    sessions.add(session())
    assert len(sessions) == 1


def test_the_limit() -> None:
    sessions, _ = table(limit=1)
    sessions.add(session())
    with pytest.raises(Overloaded, match="1 sessions are open, which is the limit") as failure:
        sessions.add(session("bob"))
    assert failure.value.retry_after_s == 60


def test_any_call_renews_the_lease_and_without_one_it_runs_out() -> None:
    sessions, clock = table()
    found = session()
    sessions.add(found)
    for _ in range(5):
        clock.now += 59
        assert sessions.get(found.ref) is found
    assert sessions.expired() == []
    clock.now += 61
    assert sessions.expired() == [found]
    for _ in range(2):  # before it is taken away, and after
        with pytest.raises(LeaseExpired, match="lease of 60 s ran out; enrol again and import"):
            sessions.get(found.ref)
        sessions.remove(found, "lease")
    assert found.closed


def test_no_lease_runs_out_while_a_call_waits_or_runs() -> None:
    sessions, clock = table()
    found = session()
    sessions.add(found)
    with sessions.working(found):
        with sessions.working(found):
            clock.now += 1000
            assert sessions.expired() == []
        clock.now += 1000
        assert sessions.get(found.ref) is found
        with pytest.raises(StudentNameTaken):
            sessions.add(session())
        clock.now += 1000
    clock.now += 59
    assert sessions.expired() == [], "it begins anew when the call is answered"
    clock.now += 2
    assert sessions.expired() == [found]


def test_a_name_is_free_as_soon_as_the_lease_ran_out() -> None:
    sessions, clock = table()
    sessions.add(session())
    clock.now += 61
    assert sessions.enrolled("ann", "call") is None
    sessions.add(session())


def test_the_call_that_opened_a_session_finds_it_again() -> None:
    sessions, _ = table()
    first, again = session(), session()
    first.enrolled_by = again.enrolled_by = "call"
    assert sessions.add(first) is first
    assert sessions.enrolled("ann", "call") is first
    assert sessions.add(again) is first  # a race of the same call with itself
    assert len(sessions) == 1
    nameless = session("bob")
    sessions.add(nameless)
    with pytest.raises(StudentNameTaken):
        sessions.enrolled("bob", "")


def test_unknown_and_left_sessions() -> None:
    sessions, _ = table()
    found = session()
    sessions.add(found)
    sessions.remove(found, "leave")
    for ref in (found.ref, SessionRef("never", 1), SessionRef()):
        with pytest.raises(SessionNotFound, match="enrol again") as failure:
            sessions.get(ref)
        assert not isinstance(failure.value, LeaseExpired)


def test_resume_fences_the_older_client_off() -> None:
    sessions, clock = table()
    found = session()
    sessions.add(found)
    old = found.ref
    clock.now += 50
    assert sessions.resume(found.id, "ann") is found
    clock.now += 50
    with pytest.raises(StaleEpoch, match="holds epoch 1 of its session, which is at epoch 2"):
        sessions.get(old)
    assert sessions.get(found.ref) is found
    with pytest.raises(SessionNotFound, match="not one of student 'bob'"):
        sessions.resume(found.id, "bob")
    with pytest.raises(StaleEpoch):
        sessions.get(SessionRef(found.id, 3))


def test_a_stale_client_does_not_renew_the_lease() -> None:
    sessions, clock = table()
    found = session()
    sessions.add(found)
    old = found.ref
    sessions.resume(found.id, "ann")
    clock.now += 59
    with pytest.raises(StaleEpoch):
        sessions.get(old)
    clock.now += 2
    assert sessions.expired() == [found]


def test_inputs_are_let_go_oldest_first_within_the_budget() -> None:
    found = session()
    request: Any = ForwardRequest()
    for name in ("1", "2", "3"):
        assert found.open_call(name, request, 40, 100) == []
    assert [call.request is None for call in found.calls.values()] == [True, False, False]
    assert found.open_call("4", request, 500, 100) == []
    assert [call.request is None for call in found.calls.values()] == [True, True, True, False]


def test_open_calls_are_bounded() -> None:
    found = session()
    forgotten = [found.open_call(str(number), ForwardRequest(), 0, 100) for number in range(400)]
    assert len(found.calls) == 256
    assert [name for names in forgotten for name in names] == [str(number) for number in range(144)]
    assert "143" not in found.calls


def test_a_repeated_resume_has_one_effect() -> None:
    sessions, _ = table()
    found = session()
    sessions.add(found)
    for _ in range(2):
        assert sessions.resume(found.id, "ann", "first").epoch == 2
    assert sessions.resume(found.id, "ann", "second").epoch == 3
    with pytest.raises(StaleEpoch, match="this call brought the session to epoch 2, it is at 3"):
        sessions.resume(found.id, "ann", "first")  # on its way for long
    assert found.epoch == 3
    for number in range(100):
        sessions.resume(found.id, "ann", str(number))
    assert len(found.risen) == 16
