from __future__ import annotations

from typing import Any

import pytest
import simpy
from hypothesis import given
from hypothesis import strategies as st
from scale.sharing import Shared

AMOUNTS = st.lists(st.floats(0.01, 100.0), min_size=1, max_size=12)


def ends(shared: Shared, works: list[dict[str, Any]], starts: list[float] | None = None) -> list[float]:
    """When each is done; all begin at once, or at their starts."""
    env, found = shared.env, [0.0] * len(works)

    def one(place: int, work: dict[str, Any], start: float) -> Any:
        yield env.timeout(start)
        yield shared.use(**work)
        found[place] = env.now

    for place, work in enumerate(works):
        env.process(one(place, work, starts[place] if starts else 0.0))
    env.run()
    return found


def test_alone_it_takes_what_it_takes() -> None:
    shared = Shared(simpy.Environment(), 4.0)
    assert ends(shared, [{"amount": 6.0, "most": 1.0}]) == [pytest.approx(6.0)]
    assert ends(Shared(simpy.Environment(), 4.0), [{"amount": 6.0}]) == [pytest.approx(1.5)]
    assert shared.busy() == pytest.approx(6.0)


def test_a_team_of_two_and_a_thread_on_two_cores() -> None:
    """Three threads on two cores have two thirds of one each, until the first of them is done."""
    team, thread = ends(Shared(simpy.Environment(), 2.0), [{"amount": 8.0, "most": 2.0}, {"amount": 1.0, "most": 1.0}])
    assert thread == pytest.approx(1.5)
    assert team == pytest.approx(1.5 + (8.0 - 2.0) / 2.0)


def test_an_interpreter_is_one_core_at_most_and_leaves_the_rest() -> None:
    works = [{"amount": 1.0, "most": 1.0, "group": "python", "limit": 1.0} for _ in range(4)]
    *threads, other = ends(Shared(simpy.Environment(), 2.0), [*works, {"amount": 1.0, "most": 1.0}])
    assert threads == [pytest.approx(4.0)] * 4
    assert other == pytest.approx(1.0)


@given(AMOUNTS, st.floats(0.5, 8.0))
def test_equal_sharing_as_the_closed_form_says(amounts: list[float], capacity: float) -> None:
    """The k-th to be done has had as much as each of those still there: t_k = sum of min(a_i, a_k) over the capacity."""
    found = ends(Shared(simpy.Environment(), capacity), [{"amount": each} for each in amounts])
    for amount, end in zip(amounts, found, strict=True):
        assert end == pytest.approx(sum(min(amount, each) for each in amounts) / capacity, rel=1e-6)


@given(
    st.lists(
        st.tuples(
            st.floats(0.01, 20.0), st.sampled_from([0.5, 1.0, 2.0]), st.sampled_from([None, "a", "b"]), st.floats(0, 5)
        ),
        min_size=1,
        max_size=15,
    ),
    st.floats(0.5, 6.0),
)
def test_nothing_is_lost_and_nobody_is_faster_than_alone(works: list[tuple[Any, ...]], capacity: float) -> None:
    shared = Shared(simpy.Environment(), capacity)
    said = [{"amount": a, "most": m, "group": g, "limit": 1.0} for a, m, g, _ in works]
    found = ends(shared, said, [start for *_, start in works])
    assert shared.busy() == pytest.approx(sum(amount for amount, *_ in works), rel=1e-6)
    for (amount, most, group, start), end in zip(works, found, strict=True):
        rate = min(capacity, most, 1.0 if group else most)
        assert end >= start + amount / rate - 1e-6
    assert max(found) >= sum(amount for amount, *_ in works) / capacity - 1e-6
