from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from teacher_server.jobs import Batch, Job
from teacher_server.scheduling.pace import Pace
from teacher_server.scheduling.policy import Rules
from teacher_server.scheduling.rhythm import Expected, Rhythm, kind_of
from teacher_server.scheduling.waiting import Outlook, Patience, companions, linger_s
from teaching_protocol import verbs
from teaching_protocol.verbs import Call

KINDS = {
    "forward": verbs.ForwardRequest(backward_follows=True),
    "observe": verbs.ForwardRequest(),
    "backward": verbs.BackwardRequest(),
    "step": verbs.StepRequest(),
}


class LaneJob(Job):
    """A job of a named lane."""

    lane = ""


def job(kind: str, lane: str = "a", born: float = 0.0, bucket: str | None = "b", tokens: int = 8) -> Job:
    made = LaneJob("x", None, KINDS[kind], Call(), 1, tokens, born=born)
    made.lane, made.bucket = lane, bucket
    return made


class Student:
    """A student in a loop, on a clock of its own: thinks, calls, is answered."""

    def __init__(self, rhythm: Rhythm, lane: str = "a") -> None:
        self.rhythm, self.lane, self.now = rhythm, lane, 100.0

    def call(self, kind: str, think_s: float, busy_s: float, good: bool = True, batch: int = 1) -> None:
        self.now += think_s
        called = job(kind, self.lane, self.now)
        self.rhythm.called(called, self.now)
        self.now += busy_s
        self.rhythm.replied(called, self.now, batch, good)

    def step(self, think_s: tuple[float, float, float] = (0.004, 0.002, 0.001), busy_s: float = 0.05) -> None:
        for kind, seconds in zip(("forward", "backward", "step"), think_s, strict=True):
            self.call(kind, seconds, busy_s)


def only(found: list[Expected]) -> Expected:
    assert len(found) == 1
    return found[0]


def test_kinds() -> None:
    assert [kind_of(job(kind)) for kind in KINDS] == ["forward", "observe", "backward", None]


def test_after_a_few_steps_the_next_call_is_expected_when_it_comes() -> None:
    rhythm = Rhythm()
    student = Student(rhythm)
    assert rhythm.expected(student.now) == []
    for _ in range(4):
        student.step()
    student.call("forward", 0.004, 0.05)
    found = only(rhythm.expected(student.now))
    assert (found.lane, found.kind, found.bucket, found.tokens, found.batch) == ("a", "backward", "b", 8, 1)
    assert found.in_s == pytest.approx(0.002)
    assert 0.002 < found.at_most_s < 0.02
    assert rhythm.batch_of("a") == 1


def test_the_seconds_of_a_step_are_no_time_of_thinking() -> None:
    rhythm = Rhythm()
    student = Student(rhythm)
    random.seed(0)
    for _ in range(20):
        student.step(busy_s=random.uniform(0.01, 0.3))  # the Step waits behind others for ever another time
    student.call("forward", 0.004, 0.05)
    student.call("backward", 0.002, 0.05)
    assert only(rhythm.expected(student.now)).in_s == pytest.approx(0.005)  # 1 ms to the Step, 4 ms to the Forward
    student.call("step", 0.001, 0.2)
    found = only(rhythm.expected(student.now))
    assert found.kind == "forward"
    assert found.in_s == pytest.approx(0.004)


def test_who_is_late_stalled_failed_or_gone_is_not_expected() -> None:
    rhythm = Rhythm()
    student = Student(rhythm)
    for _ in range(4):
        student.step()
    assert rhythm.at_work("a", student.now)
    assert rhythm.expected(student.now + 1.0) == []
    assert not rhythm.at_work("a", student.now + 1.0)
    student.call("forward", 0.004, 0.05, good=False)
    assert rhythm.expected(student.now) == []
    student.step()
    assert rhythm.expected(student.now)
    rhythm.forget("a")
    assert rhythm.expected(student.now) == []
    assert len(rhythm) == 0


def test_who_has_a_call_under_way_is_not_expected() -> None:
    rhythm = Rhythm()
    student = Student(rhythm)
    for _ in range(4):
        student.step()
    rhythm.called(job("forward"), student.now)
    assert rhythm.expected(student.now) == []


def test_one_long_pause_does_not_spoil_what_is_known() -> None:
    rhythm = Rhythm()
    student = Student(rhythm)
    for _ in range(20):
        student.step()
    student.now += 30.0  # an evaluation
    student.step()
    found = only(rhythm.expected(student.now))
    assert found.in_s < 0.02


def test_who_often_stops_for_seconds_is_not_taken_to_be_about_to_call() -> None:
    """Two steps, then ten seconds of nothing, again and again: of that the spread tells, and nobody waits for it or leaves it a core."""
    rhythm = Rhythm()
    student = Student(rhythm)
    for _ in range(10):
        student.step()
        student.step()
        student.now += 10.0
    student.step()
    student.call("forward", 0.004, 0.05)
    student.call("backward", 0.002, 0.05)
    found = only(rhythm.expected(student.now + 0.1))
    assert found.kind == "forward"
    assert found.in_s > 0.5


def test_a_rhythm_that_changed_is_learned_anew() -> None:
    rhythm = Rhythm()
    student = Student(rhythm)
    for _ in range(20):
        student.step()
    for _ in range(60):
        student.step((0.4, 0.2, 0.1))
    assert only(rhythm.expected(student.now)).in_s == pytest.approx(0.4, rel=0.2)


def test_observing_ahead_has_a_rhythm_of_its_own() -> None:
    rhythm = Rhythm()
    student = Student(rhythm)
    for _ in range(4):
        student.call("forward", 0.004, 0.05)
        student.call("observe", 0.0, 0.01)
        student.call("backward", 0.002, 0.05)
    assert [each.kind for each in rhythm.expected(student.now)] == ["forward", "observe"]
    assert rhythm.expected(student.now)[1].in_s == pytest.approx(0.054, abs=0.01)


@settings(deadline=None)
@given(st.lists(st.floats(0, 10), min_size=3, max_size=50))
def test_a_wait_is_never_for_the_past_and_ends(gaps: list[float]) -> None:
    rhythm = Rhythm()
    student = Student(rhythm)
    for gap in gaps:
        student.call("observe", gap, 0.01)
        for found in rhythm.expected(student.now):
            assert 0 <= found.in_s <= found.at_most_s < 1000


# how long to wait

PATIENCE = Patience(limit_s=0.02, share=0.25, turn_share=0.5)


def about(in_s: float, kind: str = "forward", bucket: str | None = "b", tokens: int = 8, batch: int = 0) -> Expected:
    return Expected("x", kind, bucket, tokens, in_s, in_s + 0.002, batch)


def hold(
    batch_s: float,
    joining: list[Expected],
    in_turn: list[Expected],
    start_s: float | None = None,
    waited_s: float = 0.0,
) -> float:
    return linger_s(joining, in_turn, Outlook(batch_s, start_s, waited_s), PATIENCE)


def test_a_student_about_to_call_is_waited_for_and_no_longer_than_it_is_worth() -> None:
    assert hold(0.04, [about(0.001)], []) == pytest.approx(0.003)
    assert hold(0.04, [about(0.009)], []) == pytest.approx(0.010)
    assert hold(0.04, [about(0.011)], []) == 0.0  # a quarter of the batch is 10 ms
    assert hold(0.04, [about(0.011), about(0.011)], []) == pytest.approx(0.013)  # worth it for two
    assert hold(10.0, [about(0.021)], []) == 0.0  # the limit
    assert hold(0.0, [about(0.0)], []) == 0.0


def test_where_starting_a_batch_costs_next_to_nothing_waiting_buys_nothing() -> None:
    assert hold(0.04, [about(0.002)], [], start_s=0.001) == 0.0
    assert hold(0.04, [about(0.002)], [], start_s=0.003) == pytest.approx(0.003)
    assert hold(0.04, [about(0.002)], [], start_s=1.0) == pytest.approx(0.004)  # the share still bounds it


def test_what_was_waited_already_counts() -> None:
    assert hold(0.04, [about(0.005)], [], waited_s=0.004) == pytest.approx(0.006)
    assert hold(0.04, [about(0.005)], [], waited_s=0.006) == 0.0


def test_nobody_to_wait_for() -> None:
    assert hold(1.0, [], []) == 0.0
    assert linger_s([about(0.001)], [], Outlook(1.0), Patience(0.0, 0.25, 0.5)) == 0.0


def test_whose_turn_it_is_is_waited_for_up_to_half_of_the_batch_that_would_go_before_it() -> None:
    assert hold(0.04, [], [about(0.014)], start_s=0.0) == pytest.approx(0.016)
    assert hold(0.04, [], [about(0.021), about(0.021)]) == 0.0  # two do not make it worth more


@settings(deadline=None)
@given(
    st.floats(0, 10),
    st.lists(st.builds(about, st.floats(0, 1)), max_size=5),
    st.lists(st.builds(about, st.floats(0, 1)), max_size=5),
    st.one_of(st.none(), st.floats(0, 1)),
    st.floats(0, 1),
)
def test_all_waits_together_stay_within_the_bounds(
    batch_s: float, joining: list[Expected], in_turn: list[Expected], start_s: float | None, waited_s: float
) -> None:
    hold_s = hold(batch_s, joining, in_turn, start_s, waited_s)
    assert hold_s >= 0
    if hold_s:
        share = max(PATIENCE.share * len(joining), PATIENCE.turn_share * bool(in_turn))
        assert waited_s + hold_s <= min(PATIENCE.limit_s, share * batch_s) + 1e-9


def test_who_may_join() -> None:
    rules = Rules(batch_tokens=32)
    forward, backward = Batch((job("forward"),)), Batch((job("backward", bucket="c"),))
    like, other_kind, other_bucket = about(0.001), about(0.001, "backward"), about(0.001, bucket="z")
    assert companions(forward, [like, other_kind, other_bucket], {7}, rules) == [like]
    same_batch = about(0.001, "backward", "z", batch=7)
    assert companions(backward, [like, other_kind, same_batch], {7}, rules) == [same_batch]
    assert companions(forward, [about(0.001, tokens=16), about(0.002, tokens=9)], set(), rules) == [
        about(0.001, tokens=16)
    ]
    assert companions(forward, [about(0.001, tokens=25)], set(), rules) == []
    assert companions(Batch((job("forward", bucket=None),)), [about(0.001, bucket=None)], set(), rules) == []
    assert companions(Batch((job("step"),)), [like], set(), rules) == []
    assert companions(forward, [like], set(), Rules(32, merge=False)) == []


# how long a batch takes


def test_a_line_is_found_through_what_was_seen() -> None:
    pace = Pace()
    assert pace.seconds("forward", 100) == 0.0
    assert pace.free_tokens("forward") == 0.0
    for tokens in (100, 200, 400, 300, 100):
        pace.learn("forward", tokens, 0.01 + tokens * 1e-4)
    assert pace.seconds("forward", 1000) == pytest.approx(0.11)
    assert pace.free_tokens("forward") == pytest.approx(100)
    assert pace.seconds("backward", 1000) == 0.0


def test_batches_of_one_size_cost_by_the_token() -> None:
    pace = Pace()
    for _ in range(3):
        pace.learn("forward", 100, 0.5)
    assert pace.seconds("forward", 200) == pytest.approx(1.0)
    assert pace.free_tokens("forward") == 0.0
    assert pace.start_s("forward") is None
    for tokens in (50, 200):
        pace.learn("forward", tokens, 0.5)  # whatever is in it
    assert pace.start_s("forward") == pytest.approx(0.5)


def test_what_starting_a_batch_costs_is_remembered_for_a_thousand_of_one_size() -> None:
    pace = Pace()
    assert pace.told_tokens("forward") is None
    pace.learn("forward", 100, 0.02)
    assert pace.told_tokens("forward") is None, "one size tells nothing"
    for tokens in (200, 100, 400):
        pace.learn("forward", tokens, 0.01 + tokens * 1e-4)
    assert pace.told_tokens("forward") == pytest.approx(100)
    for _ in range(900):
        pace.learn("forward", 100, 0.02)
    assert pace.free_tokens("forward") == 0.0
    assert pace.told_tokens("forward") == pytest.approx(100, rel=0.2)
    for _ in range(300):
        pace.learn("forward", 100, 0.02)
    assert pace.told_tokens("forward") is None
    pace.learn("forward", 200, 0.02)
    for _ in range(20):
        pace.learn("forward", 400, 0.02)
    assert pace.told_tokens("forward") == math.inf, "the start is all"


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5000), st.floats(0, 10)), min_size=1, max_size=50), st.integers(0, 10000))
def test_expectations_are_sane_whatever_was_seen(seen: list[tuple[int, float]], tokens: int) -> None:
    pace = Pace()
    for count, seconds in seen:
        pace.learn("forward", count, seconds)
    assert pace.seconds("forward", tokens) >= 0
    assert pace.free_tokens("forward") >= 0
    assert (pace.told_tokens("forward") or 0.0) >= 0
