"""Turns on a clock of the test's own: the server's real order of batches, simulated students, no threads.

Times are those of a device on which a batch costs a start and so much a token; so what a flood does to a polite student's
step is a number that does not depend on the machine that runs the test.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from teacher_server.config import ServerConfig
from teacher_server.jobs import Batch, Job
from teacher_server.live import LiveSettings
from teacher_server.metrics.metrics import Metrics
from teacher_server.scheduling.admission import Admission
from teacher_server.scheduling.lanes import Lanes
from teacher_server.scheduling.order import Choice, Order
from teacher_server.scheduling.policy import area
from teacher_server.scheduling.rhythm import kind_of
from teacher_server.sessions.codecs import CodecShape, TeacherCodec
from teacher_server.sessions.optimizers import build_optimizer
from teacher_server.sessions.replies import Replies
from teacher_server.sessions.sessions import Session
from teaching_protocol import verbs
from teaching_protocol.verbs import Call, OptimizerSettings, SessionSettings

SECONDS, TOKENS, LENGTH = 20.0, 512, 32
REQUESTS = {
    "forward": verbs.ForwardRequest(backward_follows=True),
    "backward": verbs.BackwardRequest(),
    "step": verbs.StepRequest(),
}


def session(lane: str) -> Session:
    """One whose codec is as large as a student's of MiniLM, so that its Steps are charged as much."""
    codec = TeacherCodec(CodecShape(384, 384, 384), None)
    return Session(
        lane, lane, SessionSettings(), codec, build_optimizer(codec.parameters(), OptimizerSettings()), Replies(1)
    )


class LaneJob(Job):
    """A job of a named lane, and what follows its reply."""

    lane = ""
    then: Callable[[], None]


@dataclass
class Simulation:
    """A server in simulated time: lanes, the real order, an engine that takes `start_s` and, on all its cores, `token_s`."""

    start_s: float = 0.002
    token_s: float = 0.0001
    way_s: float = 0.0005  # of a reply, the student's own work and its next call
    settings: dict[str, Any] = field(default_factory=dict)
    cores: int = 1

    def __post_init__(self) -> None:
        config = ServerConfig(model="tiny", **self.settings)
        live = LiveSettings(config)
        self.order = Order(live, Metrics(), Admission(live), self.cores)
        self.now, self.since = 0.0, None
        self.running: list[Batch] = []
        self.lanes = Lanes()
        self.batches: list[Batch] = []
        self.sessions: dict[str, Session] = {}
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()

    def after(self, seconds: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now + seconds, next(self._numbers), event))

    def run(self, until: float) -> None:
        while self._events and self._events[0][0] <= until:
            self.now, _, event = heapq.heappop(self._events)
            event()
            self._dispatch()

    def call(self, lane: str, kind: str, tokens: int, then: Callable[[], None]) -> None:
        tokens = tokens if kind != "step" else 0
        owner = self.sessions[lane] = self.sessions.get(lane) or session(lane)
        job = LaneJob(kind, owner, REQUESTS[kind], Call(), tokens // LENGTH, tokens, born=self.now)
        job.lane, job.bucket, job.then = lane, kind, then
        self.order.arrived(job, self.now)
        self.lanes.push(job)

    def _dispatch(self) -> None:
        for short in (True, False):
            while self._begins(short=short):
                pass

    def _begins(self, *, short: bool) -> bool:
        """One more batch, if there is one and a thread for it."""
        heads = [job for job in self.lanes.heads() if (kind_of(job) is None) is short]
        own = [batch for batch in self.running if (kind_of(batch.jobs[0]) is None) is short]
        if not heads or (own if short else sum(batch.cores for batch in own) >= self.cores):
            return False
        waited_s = 0.0 if short or self.since is None else self.now - self.since
        choice = self.order.choose(heads, waited_s, self.now, own)
        if choice.hold_s > 0:
            self.since = self.now - waited_s
            self.after(choice.hold_s, lambda: None)
            return False
        if not short:
            self.since = None
            self.batches.append(choice.batch)
        self._begin(choice, waited_s)
        return True

    def _begin(self, choice: Choice, waited_s: float) -> None:
        batch = choice.batch
        self.lanes.take(batch)
        self.order.take(choice, waited_s)
        self.running.append(batch)
        token_s = self.token_s * self.cores / batch.cores
        seconds = self.start_s + token_s * area(batch.jobs) if batch.tokens else 0.0003
        self.after(seconds, lambda: self._end(batch, seconds))

    def _end(self, batch: Batch, seconds: float) -> None:
        self.running.remove(batch)
        self.lanes.ran(batch)
        for job in batch.jobs:
            assert isinstance(job, LaneJob)
            self.order.done(job, None, True, self.now)
            self.after(self.way_s, job.then)
        self.order.ran(batch, seconds)


def loop(simulation: Simulation, lane: str, tokens: int, think_s: float = 0.002) -> list[float]:
    """A student in a loop; gives the list its steps' seconds are added to."""
    seconds: list[float] = []

    def follow() -> Iterator[None]:
        for _ in itertools.count():
            begun = simulation.now
            for kind in ("forward", "backward", "step"):
                simulation.call(lane, kind, tokens, resume)
                yield
            seconds.append(simulation.now - begun)
            simulation.after(think_s, resume)
            yield

    story = follow()

    def resume() -> None:
        next(story)

    simulation.after(0.0, resume)
    return seconds


def flood(simulation: Simulation, threads: int, tokens: int, lane: str = "flood") -> None:
    """One lane into which many threads send Forward and Backward without a pause."""

    def thread(kind: str) -> None:
        simulation.call(lane, kind, tokens, lambda: thread("backward" if kind == "forward" else "forward"))

    for _ in range(threads):
        simulation.after(0.0, lambda: thread("forward"))


def p95(values: list[float]) -> float:
    return sorted(values)[int(0.95 * len(values))]


def beside_floods(times: int, start_s: float, way_s: float, cores: int = 1) -> float:
    """The p95 of a polite student's step beside a flood a core, of calls so many times as large, over that beside as many like it."""
    fair = Simulation(start_s, way_s=way_s, cores=cores)
    shared = [loop(fair, f"lane {number}", TOKENS) for number in range(cores + 1)]
    fair.run(SECONDS)
    flooded = Simulation(start_s, way_s=way_s, cores=cores)
    polite = loop(flooded, "polite", TOKENS)
    for number in range(cores):
        flood(flooded, 20, times * TOKENS, f"flood {number}")
    flooded.run(SECONDS)
    served = sum(job.tokens for batch in flooded.batches for job in batch.jobs if job.lane != "polite")
    assert served > 0.5 * cores * 2 * TOKENS * len(polite), "the floods have their own share"
    return p95(polite) / p95(shared[0])


@pytest.mark.parametrize("cores", [1, 2, 4])
def test_who_was_served_while_others_were_away_has_its_turns_when_they_come(cores: int) -> None:
    """No debt: of a few that had all the model, and then many beside them, none is held up until the others have had as much."""
    simulation = Simulation(cores=cores)
    early = [loop(simulation, f"early {number}", TOKENS // 4, think_s=0.01 * number) for number in range(4)]
    simulation.run(SECONDS)
    late = [loop(simulation, f"late {number}", TOKENS // 4) for number in range(12)]
    simulation.run(SECONDS + 2.0)
    begun = [len(steps) for steps in early + late]
    simulation.run(SECONDS + 7.0)
    made = [len(steps) - before for steps, before in zip(early + late, begun, strict=True)]
    assert min(made) > 0.6 * max(made), made


@pytest.mark.parametrize("start_s", [0.002, 0.05])  # every token costs; a batch costs its start
@pytest.mark.parametrize("times", [1, 2, 4])
@pytest.mark.parametrize("cores", [1, 2, 4])
def test_a_flood_costs_a_polite_student_no_more_than_one_and_a_half_fair_shares(
    times: int, start_s: float, cores: int
) -> None:
    """Without pauses between layers, which are not simulated: so larger calls on each of several cores may cost more."""
    limit = {(2, 4): 1.8, (4, 2): 1.6, (4, 4): 2.0}.get((cores, times), 1.5)
    assert beside_floods(times, start_s, way_s=0.0005, cores=cores) <= limit


@pytest.mark.parametrize("times", [1, 2])
def test_a_student_whose_calls_take_a_third_of_a_batch_to_come_keeps_its_turn(times: int) -> None:
    assert beside_floods(times, 0.002, way_s=0.015) <= 1.25


def test_students_on_cores_of_their_own_are_as_fast_as_the_cores() -> None:
    """Where every token costs, and those at work are more than the cores: nothing idles, and nobody is merged."""
    simulation = Simulation(0.0005, 0.0001, cores=2)
    loops = [loop(simulation, f"student-{number}", TOKENS, 0.002) for number in range(5)]
    simulation.run(SECONDS)
    best = SECONDS / (2 * TOKENS * 0.0001)  # steps, if the cores did nothing else
    assert sum(map(len, loops)) > 0.95 * best
    assert merged(simulation) < 1.05


def test_short_calls_share_batches_on_cores_of_their_own() -> None:
    """Starting a batch costs as much as 100 tokens: one by one, calls of 64 would have less than half of a core."""
    simulation = Simulation(0.02, 0.0001, cores=2)
    loops = [loop(simulation, f"student-{number}", 64, 0.002) for number in range(12)]
    simulation.run(SECONDS)
    one_by_one = 2 * SECONDS / (2 * (0.02 + 2 * 64 * 0.0001))
    assert sum(map(len, loops)) > 1.5 * one_by_one
    assert merged(simulation) > 3


def merged(simulation: Simulation) -> float:
    batches = simulation.batches[len(simulation.batches) // 4 :]
    return sum(len(batch.jobs) for batch in batches) / len(batches)


@pytest.mark.parametrize("students", [2, 4, 8, 16])
def test_students_in_loops_find_each_other_where_a_batch_costs_its_start(students: int) -> None:
    found, steps = {}, {}
    for linger in (False, True):
        simulation = Simulation(0.02, 0.00001, settings={"linger": linger})
        loops = [loop(simulation, f"student-{number}", 64, 0.002 + 0.0003 * number) for number in range(students)]
        simulation.run(SECONDS / 4)
        found[linger], steps[linger] = merged(simulation), sum(map(len, loops))
    assert found[True] > 0.9 * students, found
    assert found[False] < 0.75 * students, found
    assert steps[True] > 1.1 * steps[False], steps


def test_where_every_token_costs_waiting_neither_helps_nor_harms() -> None:
    steps = {}
    for linger in (False, True):
        simulation = Simulation(0.0005, 0.0001, settings={"linger": linger})
        loops = [loop(simulation, f"student-{number}", 256 + 32 * number, 0.002) for number in range(8)]
        simulation.run(SECONDS)
        steps[linger] = sum(map(len, loops))
    assert steps[True] > 0.97 * steps[False], steps
