"""Several ranks of one student in one session: their gradients' mean, one step when all are in, nobody waiting for ever."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load

from teacher_server.actor import TeacherActor
from teacher_server.local import local_teacher
from teacher_server.models.split import FrozenTeacher
from teaching_protocol import verbs
from teaching_protocol.errors import (
    CallConflict,
    InvalidSetting,
    NonFiniteError,
    RankLost,
    SessionNotFound,
    StaleEpoch,
    StateMismatch,
    StepOutOfOrder,
)
from tests.calls import WIDTH, Caller, attempt, in_s

ROWS, TOKENS = 6, 3
MESSAGE = torch.linspace(-1, 1, ROWS * TOKENS * WIDTH).reshape(ROWS, TOKENS, WIDTH)
GRADIENT = torch.linspace(1, 2, ROWS * TOKENS * WIDTH).reshape(ROWS, TOKENS, WIDTH)


@pytest.fixture
def actor(bert: FrozenTeacher) -> TeacherActor:
    return local_teacher(bert, max_tokens=32, threads=1, deterministic=True, rank_wait_s=20.0)


def told(caller: Caller, rows: slice, rank: int = 0) -> torch.Tensor:
    """One rank's Forward and Backward of a loss that is the mean over its rows; gives the gradient of its message."""
    message, count = MESSAGE[rows], len(MESSAGE[rows])
    forward, _ = caller.forward(inputs={"message": message}, rank=rank)
    return caller.backward(forward, grads={"answer": GRADIENT[rows] / count}, rank=rank).grads["message"]


def at_once(jobs: Sequence[Callable[[], Any]]) -> list[Any]:
    with ThreadPoolExecutor(len(jobs)) as pool:
        return [each.result() for each in [pool.submit(attempt, job) for job in jobs]]


def steps(caller: Caller, number: int, rows: Sequence[int], **changes: Any) -> list[Any]:
    return at_once(
        [
            lambda rank=rank, count=count: caller.step(number, rank=rank, rows=count, **changes)
            for rank, count in enumerate(rows)
        ]
    )


def state(caller: Caller) -> dict[str, torch.Tensor]:
    return load(caller.export())


def assert_close(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, atol=1e-5, rtol=1e-5, msg=name)


@settings(max_examples=6, deadline=None)
@given(first=st.integers(0, ROWS), count=st.integers(1, 2))
def test_ranks_step_as_one_process_with_all_rows(bert: FrozenTeacher, first: int, count: int) -> None:
    actor = local_teacher(bert, max_tokens=32, threads=1, deterministic=True)
    cuts = [slice(0, first), slice(first, ROWS)]
    with Caller(actor, "one") as one, Caller(actor, "two", world_size=2) as two:
        for number in range(1, count + 1):
            whole = told(one, slice(0, ROWS))
            parts = [
                told(two, cut, rank) * len(MESSAGE[cut]) / ROWS for rank, cut in enumerate(cuts) if len(MESSAGE[cut])
            ]
            torch.testing.assert_close(torch.cat(parts), whole, atol=1e-5, rtol=1e-5)
            wanted = one.step(number, max_grad_norm=0.5)
            replies = steps(two, number, [first, ROWS - first], max_grad_norm=0.5)
            assert replies[0] == replies[1]
            assert replies[0].step == number
            assert replies[0].grad_norm == pytest.approx(wanted.grad_norm, rel=1e-4)
        assert_close(state(two), state(one))


def test_who_comes_first_changes_no_bit(actor: TeacherActor) -> None:
    found = []
    for order in ((0, 1, 2), (2, 0, 1)):
        with Caller(actor, f"order-{order}", world_size=3) as caller:
            for rank in order:
                told(caller, slice(2 * rank, 2 * rank + 2), rank)
            steps(caller, 1, [2, 1, 3])
            found.append(state(caller))
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())


def test_no_step_before_all_are_in(actor: TeacherActor) -> None:
    with Caller(actor, "waits", world_size=2) as caller:
        told(caller, slice(0, 3))
        told(caller, slice(3, 6), 1)
        before = caller.export()
        early: list[Any] = []
        thread = threading.Thread(target=lambda: early.append(attempt(lambda: caller.step(1, rank=0, rows=3))))
        thread.start()
        session = actor.sessions.live()[0]
        while session.roll._open is None:
            time.sleep(0.001)
        assert session.step == 0
        assert caller.export() == before
        late = caller.step(1, rank=1, rows=3)
        thread.join(20)
        assert early == [late]
        assert session.step == 1


def test_a_repeat_gets_the_same_reply_and_steps_once(actor: TeacherActor) -> None:
    with Caller(actor, "again", world_size=2) as caller:
        told(caller, slice(0, 3))
        told(caller, slice(3, 6), 1)
        first = steps(caller, 1, [3, 3])
        after = caller.export()
        assert steps(caller, 1, [3, 3]) == first
        assert caller.step(1, rank=1, rows=3) == first[1]  # alone, as after a reply that was lost
        assert caller.export() == after
        with pytest.raises(CallConflict, match="rank 1 has sent another Step 1"):
            caller.step(1, rank=1, rows=4)
        for number in (0, 3):
            with pytest.raises(StepOutOfOrder):
                caller.step(number, rank=0, rows=3)


def test_a_repeat_while_others_are_awaited_counts_once(actor: TeacherActor) -> None:
    with Caller(actor, "twice", world_size=2) as caller:
        told(caller, slice(0, 3))
        told(caller, slice(3, 6), 1)
        twice = [lambda: caller.step(1, rank=0, rows=3)] * 2
        found = at_once([*twice, lambda: caller.step(1, rank=1, rows=3)])
        assert found[0] == found[1] == found[2]
        assert actor.sessions.live()[0].step == 1


def test_a_lost_rank_is_an_error_in_time_and_nothing_is_applied(bert: FrozenTeacher) -> None:
    actor = local_teacher(bert, max_tokens=32, threads=1, rank_wait_s=0.3)
    with Caller(actor, "lost", world_size=3) as caller:
        for rank in range(3):
            told(caller, slice(2 * rank, 2 * rank + 2), rank)
        before, began = caller.export(), time.monotonic()
        found = at_once([lambda rank=rank: caller.step(1, rank=rank, rows=2) for rank in (0, 2)])
        assert 0.2 < time.monotonic() - began < 10
        for error in found:
            assert isinstance(error, RankLost)
            assert "rank 1 of 3 did not send its Step 1 in time" in str(error)
        assert caller.export() == before
        assert {each.step for each in steps(caller, 1, [2, 2, 2])} == {1}  # all once more, and it goes on


def test_a_rank_whose_deadline_comes_first_is_told_who_is_missing(actor: TeacherActor) -> None:
    with Caller(actor, "hasty", world_size=2) as caller:
        request = verbs.StepRequest(caller.session, 1, 0.01, rank=1, rows=1)
        with pytest.raises(RankLost, match="rank 0 of 2"):
            actor.step(request, in_s(0.1))
        assert caller.step(1, rank=0, rows=1).step == 1  # the other's Step was sent, and counts
        assert actor.step(request, in_s(5)).step == 1


def test_who_waits_hears_of_a_new_epoch_and_of_the_end(actor: TeacherActor) -> None:
    with Caller(actor, "fenced", world_size=2) as caller, ThreadPoolExecutor(1) as pool:
        session = actor.sessions.live()[0]

        def waiting() -> Any:
            found = pool.submit(attempt, lambda: caller.step(1, rank=0, rows=1))
            while session.roll._open is None:
                time.sleep(0.001)
            return found

        first = waiting()
        request = verbs.EnrollRequest("fenced", caller.settings, resume=caller.session.session_id, call_id="resume")
        caller.session = actor.enroll(request, in_s(20)).session
        assert isinstance(first.result(20), StaleEpoch)
        second = waiting()
        actor.end(session, "shutdown")
        assert isinstance(second.result(20), SessionNotFound)
        caller.session = actor.enroll(verbs.EnrollRequest("fenced", caller.settings), in_s(20)).session


def test_ranks_that_ask_for_different_steps(actor: TeacherActor) -> None:
    with Caller(actor, "unlike", world_size=2) as caller:
        found = at_once(
            [
                lambda: caller.step(1, rank=0, rows=1, lr=0.1),
                lambda: _later(lambda: caller.step(1, rank=1, rows=1, lr=0.2), actor),
                lambda: _later(lambda: caller.step(1, rank=1, rows=1, lr=0.1), actor, 0.2),
            ]
        )
        assert isinstance(found[1], InvalidSetting)
        assert "lr: rank 1 sent 0.2 for step 1, rank 0 sent 0.1" in str(found[1])
        assert found[0] == found[2]


def _later(job: Callable[[], Any], actor: TeacherActor, pause_s: float = 0.0) -> Any:
    session = actor.sessions.live()[0]
    while session.roll._open is None:
        time.sleep(0.001)
    time.sleep(pause_s)
    return job()


def test_gradients_that_are_no_numbers_are_told_to_all(actor: TeacherActor) -> None:
    with Caller(actor, "bad", world_size=2) as caller:
        told(caller, slice(0, 3))
        told(caller, slice(3, 6), 1)
        session = actor.sessions.live()[0]
        grads = session.gathered_by[1]
        session.gathered_by[1] = [None if each is None else torch.full_like(each, float("inf")) for each in grads]
        assert all(isinstance(each, NonFiniteError) for each in steps(caller, 1, [3, 3]))
        assert session.step == 0
        assert {each.step for each in steps(caller, 1, [3, 3], grad_scale=0.0)} == {1}


def test_a_rank_without_rows_counts_nothing(actor: TeacherActor) -> None:
    with Caller(actor, "one") as one, Caller(actor, "two", world_size=2) as two:
        told(one, slice(0, 1))
        told(two, slice(0, 1))
        told(two, slice(3, 6), 1)
        one.step(1)
        steps(two, 1, [1, 0])
        assert_close(state(two), state(one))


def test_ranks_and_their_number_are_checked(actor: TeacherActor) -> None:
    with pytest.raises(InvalidSetting, match="world_size: received 17, accepted are 0 to 16"):
        Caller(actor, "many", world_size=17).__enter__()
    with Caller(actor, "few", world_size=2) as caller, Caller(actor, "alone") as alone:
        for wrong in (lambda: caller.forward(rank=2), lambda: alone.forward(rank=1), lambda: caller.step(1, rank=-1)):
            with pytest.raises(InvalidSetting, match="rank: received"):
                wrong()
        with pytest.raises(InvalidSetting, match="rows: received -1"):
            caller.step(1, rank=0, rows=-1)
        assert alone.step(1, rows=7).step == 1  # with one rank rows are not read


def test_a_state_travels_between_sessions_of_any_number_of_ranks(actor: TeacherActor) -> None:
    with Caller(actor, "two", world_size=2) as two, Caller(actor, "one") as one:
        told(two, slice(0, 3))
        told(two, slice(3, 6), 1)
        begun = two.export()
        assert {name for name in load(begun) if name.startswith("gathered.0")} == {"gathered.0", "gathered.0.1"}
        with pytest.raises(StateMismatch, match="gradients of rank 1, this session has 1"):
            actor.import_(verbs.ImportRequest(one.session, begun), in_s(20))
        replies = steps(two, 1, [3, 3])
        assert actor.import_(verbs.ImportRequest(one.session, two.export()), in_s(20)).step == 1
        assert_close(state(one), state(two))
        # the begun step is in its state, each rank's part of it
        restored = verbs.EnrollRequest("again", two.settings, state=begun)
        other = Caller(actor, "again", world_size=2)
        other.session = actor.enroll(restored, in_s(20)).session
        assert steps(other, 1, [3, 3]) == replies
        assert_close(state(other), state(two))
        other.__exit__()


def test_a_step_that_one_rank_has_begun_goes_on_in_a_drain(actor: TeacherActor) -> None:
    with Caller(actor, "drained", world_size=2) as caller:
        session = actor.sessions.live()[0]
        assert not session.is_mid_step
        forward, _ = caller.forward(inputs={"message": MESSAGE[:3]})
        assert session.is_mid_step
        caller.backward(forward, grads={"answer": GRADIENT[:3]})
        assert session.is_mid_step
        told(caller, slice(3, 6), 1)
        steps(caller, 1, [3, 3])
        assert not session.is_mid_step
