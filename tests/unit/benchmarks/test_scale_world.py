from __future__ import annotations

import dataclasses
import math
import random
from collections import Counter
from typing import Any

import pytest
import simpy
from hypothesis import given, settings
from hypothesis import strategies as st
from scale.cases import Scenario, alone_s, message_bytes, rendezvous
from scale.costs import CALIBRATION, AssumedGpu, Costs, Ends, Engine, Line, Local, from_figures, measured, to_figures
from scale.sweeps import GPU_SETTINGS
from scale.teacher import Host, SimulatedTeacher
from scale.validation import scenario as real_run
from scale.world import World, simulate

CALL = Ends(server_call_s=0.0005, server_byte_s=1e-9, client_call_s=0.0008, client_byte_s=2e-9)
PROCESSOR = Engine(
    {"forward": Line(0.002, 0.001, 4e-5), "backward": Line(0.003, 0.001, 5e-5)},
    {"forward": Line(0.001, 0.001, 7e-5), "backward": Line(0.001, 0.001, 9e-5)},
    Line(0.0005, 0.0005),
    2,
    1e5,
)
GPU = AssumedGpu(launch_ms=4.0, parameters=0.2).engine()


def costs(engine: Engine = GPU, spread: float = 0.0, local: Local | None = None) -> Costs:
    known = {"small": local or Local(0.01, 0.02, 0.015)}
    return Costs(engine, dict.fromkeys(("none", "bf16", "int8", "shared"), CALL), 0.0003, known, spread, "a test")


@pytest.mark.parametrize("engine", [GPU, PROCESSOR])
@pytest.mark.parametrize(
    "fields", [{"gbps": 1.0}, {"one_host": True, "gbps": math.inf}, {"delay_s": 0.02, "way": "none"}]
)
def test_one_student_is_the_sum_of_its_parts(engine: Engine, fields: dict[str, Any]) -> None:
    scenario = Scenario(1, **fields)
    found = simulate(scenario, costs(engine))
    assert found.step_s == pytest.approx(alone_s(scenario, costs(engine)), rel=1e-6)
    assert found.steps_s == pytest.approx(1 / found.step_s, rel=1e-6)
    assert found.wait_s == pytest.approx(0, abs=1e-9)
    assert (found.students_a_batch, found.refused, found.recomputed) == (1.0, 0.0, 0.0)


def test_a_saturated_teacher_gives_its_capacity() -> None:
    """64 students at a device on which a token costs and a start does not: 1 / (2 x tokens x seconds a token)."""
    engine = dataclasses.replace(GPU, team=dict.fromkeys(("forward", "backward"), Line(0.0, 0.0, 2e-5)))
    scenario = Scenario(64, settings=GPU_SETTINGS)
    found = simulate(scenario, costs(engine))
    assert found.steps_s == pytest.approx(1 / (2 * scenario.call_tokens * 2e-5), rel=0.02)
    assert found.bottleneck == "teacher's device"
    assert found.step_s == pytest.approx(64 / found.steps_s, rel=0.1)  # Little's law


def test_a_saturated_wire_gives_its_rate_and_half_of_it_to_students_in_step() -> None:
    """Calls that share a batch go up together and come down together: one direction at a time."""
    scenario = Scenario(32, width=4096, gbps=0.5, way="none", settings=GPU_SETTINGS)
    fast = AssumedGpu(launch_ms=0.5, parameters=0.01).engine()
    found = simulate(scenario, costs(fast, local=Local(0.001, 0.001, 0.001)))
    full = 0.5e9 / (1.06 * (2 * message_bytes(8, 64, 4096, "none") + 400) * 8)
    assert 0.4 * full < found.steps_s < 0.55 * full
    assert found.busy["teacher's wire"] == pytest.approx(found.steps_s / full, rel=0.1)
    assert found.bottleneck == "teacher's wire"


@given(
    students=st.integers(1, 12),
    launch_ms=st.floats(0.1, 10.0),
    parameters=st.floats(0.005, 0.5),
    gbps=st.sampled_from([0.2, 1.0, 10.0]),
    local_s=st.floats(0.001, 0.2),
    merge=st.booleans(),
)
@settings(max_examples=12, deadline=None)
def test_asymptotic_bounds(
    students: int, launch_ms: float, parameters: float, gbps: float, local_s: float, merge: bool
) -> None:
    """As for machines and a repairman: X <= min(N / (Z + S), 1 / the largest demand), and no worse than if everybody queued for everything."""
    engine = AssumedGpu(launch_ms=launch_ms, parameters=parameters, step_ms=0.2).engine()
    known = costs(engine, local=Local(local_s, local_s, local_s))
    scenario = Scenario(
        students, gbps=gbps, width=1024, settings={**GPU_SETTINGS, "deterministic": not merge}, warm_steps=3, steps=10
    )
    found, alone = simulate(scenario, known), alone_s(scenario, known)
    size = message_bytes(8, 64, 1024, "bf16")
    wire = 1.06 * (2 * size + 400) * 8 / (gbps * 1e9)
    python = sum(CALL.server_s(2 * each) for each in (size, size, 400))
    device = 2 * (
        engine.team["forward"].token_s * 512 if merge else max(launch_ms / 1e3, engine.team["forward"].token_s * 512)
    )
    edge = scenario.steps / (scenario.steps - 1)  # everybody may be almost through a step when the window begins
    assert found.steps_s <= edge * min(students / alone, 1 / max(wire, python, device))
    assert found.steps_s >= 0.7 * students / (3 * local_s + students * (alone - 3 * local_s))


@given(
    st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(1, 64), st.floats(0, 0.2)), min_size=1, max_size=40),
    st.sampled_from([GPU, PROCESSOR]),
    st.sampled_from([{}, {"deterministic": True}, {"linger": False}, {"graph_cache_bytes": 0}]),
)
@settings(max_examples=25, deadline=None)
def test_every_call_is_answered_once(
    calls: list[tuple[str, int, float]], engine: Engine, config: dict[str, Any]
) -> None:
    env = simpy.Environment()
    teacher = SimulatedTeacher(env, Host(env, 2.0, 1e9), costs(engine), config)
    answered: Counter[str] = Counter()

    def student(name: str, own: list[tuple[int, float]]) -> Any:
        for number, (rows, pause_s) in enumerate(own):
            yield env.timeout(pause_s)
            for kind in ("forward", "backward", "step"):
                yield teacher.submit(name, kind, number, rows, rows * 16)
                answered[name] += 1

    lanes = {name: [(rows, pause) for lane, rows, pause in calls if lane == name] for name, _, _ in calls}
    for name, own in lanes.items():
        env.process(student(name, own))
    env.run(until=1000.0)
    assert answered == {name: 3 * len(own) for name, own in lanes.items()}
    assert teacher._admission.held == 0
    assert len(teacher._lanes) == 0
    assert teacher._graphs.size_bytes == 0


def test_refused_calls_come_again_and_all_students_go_on() -> None:
    scenario = Scenario(24, settings={**GPU_SETTINGS, "permits": 4})
    world = World(scenario, costs())
    found = world.run()
    assert found.refused > 0
    assert found.steps_s > 0
    assert len(world.seconds) >= scenario.steps * scenario.students


def test_the_same_seed_has_the_same_outcome() -> None:
    first, again, other = (
        simulate(Scenario(9, 2, seed=seed, settings=GPU_SETTINGS), costs(spread=0.1)) for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_batching_pays_where_a_start_costs_and_not_where_every_token_does() -> None:
    start = AssumedGpu(launch_ms=10.0, parameters=0.01).engine()
    token = dataclasses.replace(GPU, team=dict.fromkeys(("forward", "backward"), Line(0.0, 0.0, 2e-5)))
    rate = {
        (name, merged): simulate(
            Scenario(16, settings={**GPU_SETTINGS, "deterministic": not merged}),
            costs(engine, local=Local(0.002, 0.002, 0.002)),
        ).steps_s
        for name, engine in (("start", start), ("token", token))
        for merged in (True, False)
    }
    assert rate["start", True] > 3 * rate["start", False]
    assert rate["token", True] == pytest.approx(rate["token", False], rel=0.1)


def test_a_backward_without_its_graph_costs_its_forward_again() -> None:
    scenario = Scenario(1, one_host=True, gbps=math.inf)
    kept = simulate(scenario, costs(PROCESSOR))
    gone = simulate(dataclasses.replace(scenario, settings={"graph_cache_bytes": 0}), costs(PROCESSOR))
    assert gone.recomputed == 1.0
    assert gone.step_s - kept.step_s == pytest.approx(
        PROCESSOR.team["forward"].seconds(1, scenario.call_tokens), rel=1e-6
    )


def test_students_are_pinned_and_move_only_to_a_new_teacher() -> None:
    names = [f"s{number}" for number in range(300)]
    before, after = ([rendezvous(name, count) for name in names] for count in (4, 5))
    assert all(new in (old, 4) for old, new in zip(before, after, strict=True))
    assert min(Counter(after).values()) > 30


def test_costs_are_kept_whole() -> None:
    known = AssumedGpu().costs(costs(PROCESSOR))
    assert from_figures(to_figures(known)) == known
    assert "assumed" in known.source


def test_the_calibration_that_is_committed_says_what_a_run_here_would_do() -> None:
    known = measured(CALIBRATION)
    assert set(known.ends) == {"none", "bf16", "int8", "shared"}
    scenario = real_run(4, 8, 64, 2)
    found = simulate(scenario, known)
    assert 0 < found.steps_s < 4 / alone_s(scenario, dataclasses.replace(known, spread=0.0)) * 1.05
    assert max(found.busy.values()) <= 1.0 + 1e-6


def test_a_line_goes_through_its_samples() -> None:
    from scale.measuring import line_through

    rng = random.Random(0)
    true = Line(0.004, 0.002, 3e-5)
    samples = [
        (n, t, true.seconds(n, t)) for n, t in ((rng.randrange(1, 9), rng.randrange(16, 4096)) for _ in range(9))
    ]
    line, error = line_through(samples)
    assert error < 1e-6
    assert (line.start_s, line.call_s, line.token_s) == pytest.approx((0.004, 0.002, 3e-5))
