"""Fairness by work, with the policy itself in a simulated queue: pure values, many random loads."""

from __future__ import annotations

import dataclasses
from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from teacher_server.jobs import Job
from teacher_server.scheduling.fairness import Counters, cost
from teacher_server.scheduling.lanes import Lanes
from teacher_server.scheduling.policy import Rules, Turn, next_batch
from teaching_protocol import verbs
from teaching_protocol.verbs import Call

BUDGET = 128


class LaneJob(Job):
    """A job of a named lane."""

    lane = ""


def job(lane: str, rows: int, length: int, backward: bool = False, bucket: str | None = "b") -> Job:
    request = verbs.BackwardRequest() if backward else verbs.ForwardRequest()
    made = LaneJob("x", None, request, Call(), rows, rows * length)
    made.lane, made.bucket = lane, bucket
    return made


@dataclasses.dataclass(frozen=True)
class Load:
    """What a lane sends for ever: rows and length of its calls, one after another, and its weight."""

    sizes: tuple[tuple[int, int], ...]
    weight: float
    bucket: str | None
    backwards: bool


sizes = st.tuples(st.integers(1, 16), st.integers(1, 8))
loads = st.builds(
    Load,
    st.lists(sizes, min_size=1, max_size=4).map(tuple),
    st.sampled_from([0.5, 1.0, 2.0]),
    st.sampled_from([None, "a", "b"]),
    st.booleans(),
)


class Simulation:
    """Backlogged lanes under counters and policy, without threads."""

    def __init__(self, lanes: list[Load], rules: Rules) -> None:
        self.loads = {f"lane-{number}": load for number, load in enumerate(lanes)}
        self.rules = rules
        self.counters = Counters(BUDGET / 2)
        self.served = dict.fromkeys(self.loads, 0.0)
        self.sent = dict.fromkeys(self.loads, 0)
        self.waits = dict.fromkeys(self.loads, 0)
        self.heads = {name: self._next(name) for name in self.loads}
        for name in self.loads:
            self.counters.arrive(name, at_work=False)

    def _next(self, name: str) -> Job:
        load, number = self.loads[name], self.sent[name]
        self.sent[name] += 1
        rows, length = load.sizes[number // 2 % len(load.sizes)]
        return job(name, rows, length, load.backwards and number % 2 == 1, load.bucket)

    def run(self) -> list[str]:
        """Runs one batch; gives its lanes."""
        batch = next_batch([Turn(head, self.counters.of(name)) for name, head in self.heads.items()], self.rules)
        self.counters.turn(batch.jobs[0].lane)
        for each in batch.jobs:
            self.counters.charge(each.lane, cost(each), self.loads[each.lane].weight)
            self.served[each.lane] += cost(each) / self.loads[each.lane].weight
            self.heads[each.lane] = self._next(each.lane)
        chosen = [each.lane for each in batch.jobs]
        self.waits = {name: 0 if name in chosen else waited + 1 for name, waited in self.waits.items()}
        return chosen


@settings(deadline=None, max_examples=60)
@given(st.lists(loads, min_size=2, max_size=6), st.sampled_from([0.0, 20.0, 1e6]))
def test_backlogged_lanes_stay_within_a_bound_of_each_other(lanes: list[Load], free: float) -> None:
    simulation = Simulation(lanes, Rules(BUDGET, free))
    largest = max(rows * length for load in lanes for rows, length in load.sizes) / min(load.weight for load in lanes)
    for _ in range(300):
        simulation.run()
        assert max(simulation.served.values()) - min(simulation.served.values()) <= BUDGET + 2 * largest


@settings(deadline=None, max_examples=60)
@given(st.lists(loads, min_size=2, max_size=6))
def test_nobody_starves(lanes: list[Load]) -> None:
    simulation = Simulation(lanes, Rules(BUDGET))
    largest = max(rows * length for load in lanes for rows, length in load.sizes) / min(load.weight for load in lanes)
    # while a lane waits, the others are charged at least 1/2 token a batch, and no further ahead of it than the bound
    most = 2 * len(lanes) * (BUDGET + 3 * largest)
    for _ in range(200):
        simulation.run()
        assert max(simulation.waits.values()) <= most


def test_weights_share_the_work_out() -> None:
    lanes = [Load(((4, 4),), weight, None, False) for weight in (1.0, 3.0)]
    simulation = Simulation(lanes, Rules(BUDGET))
    for _ in range(400):
        simulation.run()
    assert simulation.sent["lane-1"] / simulation.sent["lane-0"] == pytest.approx(3.0, rel=0.02)


def test_a_flood_and_a_trickle_are_served_the_same_tokens() -> None:
    flood, trickle = Load(((16, 8),), 1.0, "b", False), Load(((1, 8),), 1.0, "b", False)
    simulation = Simulation([flood, trickle], Rules(BUDGET))
    for _ in range(500):
        simulation.run()
    assert simulation.served["lane-0"] == pytest.approx(simulation.served["lane-1"], abs=BUDGET + 2 * 128)


def test_an_idle_lane_banks_no_credit() -> None:
    counters = Counters(credit=50.0)
    counters.arrive("busy", at_work=False)
    for _ in range(100):
        counters.turn("busy")
        counters.charge("busy", 10.0, 1.0)
    counters.arrive("late", at_work=False)
    assert counters.of("late") == counters.level == 990.0
    counters.forget("late")
    assert len(counters) == 1


def test_a_lane_that_only_thinks_keeps_a_bounded_credit() -> None:
    counters = Counters(credit=50.0)
    for lane in ("busy", "thinking"):
        counters.arrive(lane, at_work=False)
    counters.charge("busy", 30.0, 1.0)
    counters.turn("busy")
    counters.arrive("thinking", at_work=True, others=("busy",))
    assert counters.of("thinking") == 0.0
    counters.charge("busy", 100.0, 1.0)
    counters.turn("busy")
    counters.arrive("thinking", at_work=True, others=("busy",))
    assert counters.of("thinking") == 80.0
    counters.arrive("thinking", at_work=False, others=("busy",))
    assert counters.of("thinking") == 130.0


def test_the_credit_is_two_of_the_largest_calls_there_are() -> None:
    counters = Counters(credit=5000.0)
    counters.arrive("thinking", at_work=False)
    counters.charge("thinking", 20.0, 1.0)
    for _ in range(30):
        counters.charge("busy", 40.0, 1.0)
    counters.turn("busy")
    counters.arrive("thinking", at_work=True, others=("busy", "another"))
    assert counters.of("thinking") == counters.level - 80.0
    counters.arrive("thinking", at_work=True)
    assert counters.of("thinking") == counters.level - 40.0, "busy has no job any more"


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=40))
def test_within_a_lane_the_order_is_kept(pushes: list[tuple[str, bool]]) -> None:
    lanes, waiting = Lanes(), {name: deque[Job]() for name in "abc"}
    for name, backward in pushes:
        made = job(name, 1, 1, backward)
        lanes.push(made)
        waiting[name].append(made)
    rules = Rules(BUDGET)
    while len(lanes):
        batch = next_batch([Turn(head) for head in lanes.heads()], rules)
        lanes.take(batch)
        for each in batch.jobs:
            assert waiting[each.lane].popleft() is each
        assert not {head.lane for head in lanes.heads()} & {each.lane for each in batch.jobs}, "they run"
        lanes.ran(batch)
    assert not any(waiting.values())
