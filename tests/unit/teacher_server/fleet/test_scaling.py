"""How many replicas there should be: within bounds, one at a time, only after its time."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from teacher_server.fleet.scaling import Bounds, Scaling

BOUNDS = Bounds(least=1, most=4, up_s=0.5, down_s=0.02, up_after_s=10.0, down_after_s=100.0)


def test_waiting_calls_bring_one_and_idle_ones_send_one_away() -> None:
    scaling = Scaling(BOUNDS, 2)
    assert [scaling.look([1.0, 0.2], now) for now in (0.0, 5.0, 9.9)] == [2, 2, 2]
    assert scaling.look([1.0, 0.2], 10.0) == 3
    assert scaling.look([1.0, 0.2], 30.0) == 3, "the third does not serve yet"
    assert [scaling.look([0.0] * 3, now) for now in (31.0, 130.9, 131.0)] == [3, 3, 2]


def test_a_moment_changes_nothing() -> None:
    scaling = Scaling(BOUNDS, 2)
    for now in range(200):
        assert scaling.look([2.0 if now % 9 else 0.1] * 2, float(now)) == 2


waits = st.floats(0, 5)


@given(st.lists(st.tuples(st.lists(waits, max_size=6), st.floats(0.1, 200)), max_size=60), st.integers(1, 4))
def test_within_bounds_and_one_at_a_time(looks: list[tuple[list[float], float]], count: int) -> None:
    scaling, now, since = Scaling(BOUNDS, count), 0.0, 0.0
    for queue_s, pause_s in looks:
        now, before = now + pause_s, scaling.wanted
        after = scaling.look(queue_s, now)
        assert BOUNDS.least <= after <= BOUNDS.most
        assert abs(after - before) <= 1
        if after != before:
            assert len(queue_s) == before, "a fleet in motion is left alone"
            mean_s = sum(queue_s) / len(queue_s)
            assert mean_s > BOUNDS.up_s if after > before else mean_s < BOUNDS.down_s
            assert now - since >= BOUNDS.up_after_s or since == 0.0
            since = now
