from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from teacher_server.jobs import Job
from teacher_server.scheduling.policy import Rules, Turn, area, next_batch
from teaching_protocol import verbs
from teaching_protocol.verbs import Call

RULES = Rules(batch_tokens=64)
KINDS = (verbs.ForwardRequest, verbs.BackwardRequest, verbs.StepRequest, verbs.ExportRequest)


class Bucketed(Job):
    """A job of a lane and a bucket of the test's choice."""

    lane = ""
    bucket = None


def job(request: Any, born: float = 0.0, rows: int = 1, tokens: int = 3, bucket: object = None) -> Job:
    made = Bucketed("x", None, request, Call(), rows, tokens, born=born)
    made.bucket = bucket
    made.lane = f"lane-{id(made)}"
    return made


def forward(**facts: Any) -> Job:
    return job(verbs.ForwardRequest(), **facts)


def test_first_come_first_served_among_equals() -> None:
    late, early = forward(born=2.0), forward(born=1.0)
    assert next_batch([Turn(late), Turn(early)], RULES).jobs == (early,)


def test_who_was_served_less_is_next() -> None:
    served, other = forward(born=1.0), forward(born=2.0)
    assert next_batch([Turn(served, 10.0), Turn(other, 9.0)], RULES).jobs == (other,)


@pytest.mark.parametrize("kind", [verbs.BackwardRequest, verbs.StepRequest, verbs.ExportRequest, verbs.ImportRequest])
def test_what_frees_memory_goes_before_an_older_forward(kind: type) -> None:
    older, other = forward(born=1.0), job(kind(), born=2.0)
    assert next_batch([Turn(older, 0.0), Turn(other, 3.0)], RULES).jobs == (other,)


def test_but_not_of_a_student_that_is_far_ahead() -> None:
    mine, flood = forward(born=2.0), job(verbs.BackwardRequest(), born=1.0)
    assert next_batch([Turn(mine, 0.0), Turn(flood, 3.5)], RULES).jobs == (mine,)


def test_equal_buckets_share_a_batch_up_to_its_budget() -> None:
    jobs = [forward(born=float(i), rows=2, tokens=16, bucket="b") for i in range(6)]
    batch = next_batch([Turn(each) for each in jobs], RULES)
    assert batch.jobs == tuple(jobs[:4])
    assert (batch.rows, batch.tokens, area(batch.jobs)) == (8, 64, 64)


def test_the_budget_counts_padding() -> None:
    long, short = forward(rows=1, tokens=20, bucket="b"), forward(born=1.0, rows=4, tokens=8, bucket="b")
    assert next_batch([Turn(long), Turn(short)], RULES).jobs == (long,)  # 5 rows x 20 tokens


def test_a_job_over_the_budget_runs_alone() -> None:
    large, other = forward(rows=10, tokens=100, bucket="b"), forward(born=1.0, bucket="b")
    assert next_batch([Turn(large), Turn(other)], RULES).jobs == (large,)


def test_a_large_call_does_not_ride_along_with_a_small_one() -> None:
    small, large = forward(rows=1, tokens=4, bucket="b"), forward(born=1.0, rows=8, tokens=32, bucket="b")
    turns = [Turn(small), Turn(large)]
    assert next_batch(turns, RULES).jobs == (small,)
    assert next_batch(turns, Rules(64, free_tokens=1000.0)).jobs == (
        small,
        large,
    )  # where it costs the small one nothing
    assert next_batch([Turn(small, 1.0), Turn(large)], RULES).jobs == (large, small)


def test_who_is_ahead_by_a_whole_budget_does_not_join() -> None:
    first, flood = forward(bucket="b"), forward(born=1.0, bucket="b")
    assert next_batch([Turn(first, 0.0), Turn(flood, 64.0)], RULES).jobs == (first, flood)
    assert next_batch([Turn(first, 0.0), Turn(flood, 64.5)], RULES).jobs == (first,)


@pytest.mark.parametrize("apart", [{"bucket": None}, {"bucket": "c"}])
def test_other_buckets_and_none_do_not_merge(apart: dict[str, Any]) -> None:
    first, other = forward(bucket=apart["bucket"]), forward(born=1.0, bucket=apart["bucket"] and "b")
    assert next_batch([Turn(first), Turn(other)], RULES).jobs == (first,)


def test_who_must_run_alone_does() -> None:
    first, other, third = (forward(born=float(i), bucket="b") for i in range(3))
    assert next_batch([Turn(first, alone=True), Turn(other), Turn(third)], RULES).jobs == (first,)
    assert next_batch([Turn(first), Turn(other, alone=True), Turn(third)], RULES).jobs == (first, third)
    assert next_batch([Turn(first), Turn(other)], Rules(64, merge=False)).jobs == (first,)


@st.composite
def turns(draw: st.DrawFn) -> list[Turn]:
    found = []
    for number in range(draw(st.integers(1, 12))):
        kind, rows = draw(st.sampled_from(KINDS)), draw(st.integers(1, 8))
        tokens = rows * draw(st.integers(1, 12)) if kind in KINDS[:2] else 0
        bucket = draw(st.sampled_from([None, "a", "b"]))
        made = job(kind(), float(draw(st.integers(0, 5))), rows, tokens, bucket)
        made.lane = f"lane-{number}"
        found.append(Turn(made, float(draw(st.integers(0, 200))), draw(st.booleans()) and draw(st.booleans())))
    return found


rules = st.builds(Rules, st.integers(1, 100), st.sampled_from([0.0, 5.0, 1e6]), st.booleans())


@settings(deadline=None)
@given(turns(), rules)
def test_any_batch_is_work_and_keeps_the_rules(found: list[Turn], rules: Rules) -> None:
    batch = next_batch(found, rules)
    by_job = {id(turn.job): turn for turn in found}
    chosen = [by_job[id(each)] for each in batch.jobs]
    assert chosen, "an engine with work waiting runs some of it"
    assert len({turn.job.lane for turn in chosen}) == len(chosen), "one job a lane, the first of it"
    first = chosen[0]
    if len(chosen) > 1:
        assert rules.merge
        assert first.job.bucket is not None
        assert {turn.job.bucket for turn in chosen} == {first.job.bucket}
        assert not any(turn.alone for turn in chosen)
        assert area(batch.jobs) <= rules.batch_tokens
        assert max(turn.counter for turn in chosen) <= first.counter + rules.batch_tokens


@settings(deadline=None)
@given(turns(), rules)
def test_no_forward_goes_before_a_backward_of_the_same_standing(found: list[Turn], rules: Rules) -> None:
    first = next_batch(found, rules).jobs[0]
    if first.frees_memory:
        return
    counter = next(turn.counter for turn in found if turn.job is first)
    assert not any(turn.job.frees_memory and turn.counter <= counter for turn in found)


@settings(deadline=None)
@given(turns(), rules)
def test_the_choice_does_not_depend_on_the_order_it_is_given_in(found: list[Turn], rules: Rules) -> None:
    first = next_batch(found, rules).jobs[0]
    other = next_batch(found[::-1], rules).jobs[0]
    keys = {id(turn.job): (turn.counter, turn.job.born) for turn in found}
    assert keys[id(first)] == keys[id(other)] or first is other
