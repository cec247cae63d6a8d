from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from teacher_server.config import ServerConfig
from teacher_server.live import LiveSettings
from teacher_server.scheduling.admission import Admission
from teacher_server.scheduling.door import Door
from teacher_server.scheduling.quotas import SessionQuotas, TokenBucket, quota_of, state_bytes
from teaching_protocol.errors import InvalidSetting, Overloaded, QuotaExceeded
from teaching_protocol.verbs import OptimizerSettings
from tests.unit.teacher_server.test_sessions import session


def config(**facts: Any) -> LiveSettings:
    return LiveSettings(ServerConfig(model="tiny", **facts))


def test_permits_in_all() -> None:
    admission = Admission(config(permits=2))
    admission.enter("a", "ann", 1, 0.0)
    assert admission.refusal() is None
    admission.enter("b", "bob", 1, 0.0)
    with pytest.raises(Overloaded, match="all 2 permits are taken; try again later") as failure:
        admission.enter("c", "eve", 1, 0.0)
    assert 0.05 <= failure.value.retry_after_s <= 5
    admission.leave("a")
    admission.enter("c", "eve", 1, 0.0)
    assert admission.held == 2


def test_one_lane_has_an_even_share_of_the_permits() -> None:
    admission = Admission(config(permits=8))
    admission.enter("b", "bob", 1, 0.0)
    for _ in range(4):
        admission.enter("a", "ann", 1, 0.0)
    with pytest.raises(QuotaExceeded, match="4 calls under way, its share of the permits is 4 now"):
        admission.enter("a", "ann", 1, 0.0)
    admission.leave("b")
    admission.enter("a", "ann", 1, 0.0)


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.booleans()), max_size=200), st.integers(1, 12))
def test_permits_never_leak_and_never_exceed(moves: list[tuple[str, bool]], permits: int) -> None:
    admission, held = Admission(config(permits=permits)), []
    for lane, enters in moves:
        if enters:
            try:
                admission.enter(lane, lane, 1, 0.0)
                held.append(lane)
            except Overloaded:
                assert admission.held == permits or lane in held, "who holds none gets one while there is one"
        elif lane in held:
            held.remove(lane)
            admission.leave(lane)
        assert admission.held == len(held) <= permits
    for lane in held:
        admission.leave(lane)
    assert admission.held == 0
    assert not admission._lanes


def test_tokens_a_second() -> None:
    quotas = [{"students": "slow-*", "tokens_per_s": 100}]
    admission = Admission(config(quotas=quotas))
    admission.enter("a", "slow-ann", 500, 10.0)  # larger than a burst: on credit
    with pytest.raises(QuotaExceeded, match="100 tokens a second") as failure:
        admission.enter("a", "slow-ann", 1, 10.0)
    assert failure.value.retry_after_s == pytest.approx(3.0)
    admission.enter("b", "slow-bob", 1, 10.0)
    admission.enter("c", "fast", 1_000_000, 10.0)
    admission.enter("a", "slow-ann", 1, 13.0)
    assert admission.held == 4


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 2), st.floats(0, 300)), min_size=1, max_size=100))
def test_a_bucket_keeps_its_rate_and_says_when_to_come_back(calls: list[tuple[float, float]]) -> None:
    bucket, now, taken, largest = TokenBucket(100.0), 5.0, 0.0, 0.0
    for pause, tokens in calls:
        now += pause
        delay = bucket.take(tokens, now)
        if delay:
            assert TokenBucket(100.0, bucket.level, now).take(0.0, now + delay * 1.000001) == 0.0
        else:
            taken, largest = taken + tokens, max(largest, tokens)
        assert taken <= 100.0 * (now - 5.0) + 200.0 + largest + 1e-6


def test_the_first_pattern_that_fits_holds() -> None:
    quotas = config(quotas=[{"students": "a-1", "weight": 3}, {"students": "a-*", "weight": 2}]).now.quotas
    assert [quota_of(name, quotas).weight for name in ("a-1", "a-2", "b")] == [3.0, 2.0, 1.0]
    admission = Admission(config(quotas=quotas))
    assert admission.weight("a-2") == 2.0


def test_state_is_weights_gradients_and_moments() -> None:
    assert state_bytes(10, OptimizerSettings("adamw")) == 160
    assert state_bytes(10, OptimizerSettings("sgd")) == 120
    assert state_bytes(10, OptimizerSettings("sgd"), 3) == 200, "each rank gathers gradients of its own"


def test_sessions_and_bytes_of_a_quota() -> None:
    quotas = SessionQuotas(config(quotas=[{"students": "a-*", "sessions": 2, "state_bytes": 250}], state_bytes=600))
    live = [session("a-1"), session("b")]
    for each in live:
        each.size_bytes = 100
    quotas.check("a-2", 150, live)
    with pytest.raises(QuotaExceeded, match=r"students 'a-\*' hold 100 bytes .* may have 250, 151 more"):
        quotas.check("a-2", 151, live)
    with pytest.raises(InvalidSetting, match=r"251 bytes, students 'a-\*' may have 250; ask for a smaller codec"):
        quotas.check("a-2", 251, live)
    with pytest.raises(QuotaExceeded, match=r"students 'a-\*' have 2 sessions, the quota is 2") as failure:
        quotas.check("a-2", 10, [*live, session("a-3")])
    assert failure.value.retry_after_s == 60
    with pytest.raises(QuotaExceeded, match="all students hold 200 bytes"):
        quotas.check("c", 401, live)
    with pytest.raises(InvalidSetting, match="all students may have 600"):
        quotas.check("c", 601, [])


def test_open_calls_of_a_session() -> None:
    door = Door(config(session_permits=2))
    door.enter("a")
    door.enter("a")
    door.enter("b")
    with pytest.raises(QuotaExceeded, match="2 calls open, which is the limit; read their replies") as failure:
        door.enter("a")
    assert failure.value.retry_after_s > 0
    door.leave("a")
    door.enter("a")
    assert len(door) == 3
    for name in "aab":
        door.leave(name)
    assert len(door) == 0
    assert not door._open
