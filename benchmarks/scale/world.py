"""Students in closed loops, a wire, teachers: one scenario in simulated time, and what came of it."""

from __future__ import annotations

import functools
import hashlib
import math
import random
import statistics
from dataclasses import dataclass, field
from typing import Any

import simpy
import torch

from scale.costs import Costs, Local
from scale.teacher import Host, Process, Served, SimulatedTeacher
from teaching_protocol import verbs
from teaching_protocol.errors import Overloaded
from teaching_protocol.wire import write

_LONGEST_WAIT_S = 5.0
_CONTROL_BYTES = 400  # a Step's request or reply with HTTP/2's headers, about
_NEAR = 0.7
_FULL_WIRE = 0.5  # students whose calls share batches move in step: all send, then all receive
_FRAMES = 1.06  # bytes on Ethernet over bytes of TCP's payload, at 1500 a frame


@dataclass(frozen=True)
class Scenario:
    """What is simulated.

    Attributes:
        students: in all; replicas: teachers, each on a host of its own.
        local: which of the calibrated students: its own work in a step.
        gbps: of every host's network card; inf where all is on one host.
        delay_s: one way, of a packet.
        way: how tensors travel: none, bf16, int8, or `shared` on one host.
        rows, tokens, width: of a student's messages.
        host_students: students that share a host; each has a core.
        teacher_cores: of a teacher's host.
        one_host: all processes share one machine's `teacher_cores`; nothing travels where `gbps` is infinite, else each host is a
            network namespace with a card of its own.
        settings: of the teachers, fields of `ServerConfig`.
        warm_steps, steps: of each student on the average, before and while it is measured.
    """

    students: int
    replicas: int = 1
    local: str = "small"
    gbps: float = 10.0
    delay_s: float = 50e-6
    way: str = "bf16"
    rows: int = 8
    tokens: int = 64
    width: int = 384
    host_students: int = 8
    teacher_cores: float = 16
    one_host: bool = False
    settings: dict[str, Any] = field(default_factory=dict)
    warm_steps: int = 4
    steps: int = 6
    seed: int = 0

    @property
    def call_tokens(self) -> int:
        return self.rows * self.tokens


@dataclass(frozen=True)
class Outcome:
    """What came of a scenario, in the window that was measured.

    Attributes:
        steps_s: optimizer steps a second of all students; tokens_s: of their messages.
        step_s, slow_step_s: a step's median and 95% quantile.
        wait_s: seconds a step's calls waited in the teacher's queue.
        students_a_batch: calls in a batch of Forwards or Backwards.
        busy: share of the time that each resource was at work; the busiest of its kind.
        mean_busy: the same, the mean over all of its kind.
        refused, recomputed: for each step.
    """

    steps_s: float
    tokens_s: float
    step_s: float
    slow_step_s: float
    wait_s: float
    students_a_batch: float
    busy: dict[str, float]
    mean_busy: dict[str, float]
    refused: float
    recomputed: float

    @property
    def bottleneck(self) -> str:
        """The resource that is nearest to being full; `round trip` where none is near."""
        full = {name: share / (_FULL_WIRE if name.endswith("wire") else 1.0) for name, share in self.busy.items()}
        name = max(full, key=lambda each: full[each])
        return name if full[name] > _NEAR else "round trip"


def rendezvous(student: str, replicas: int) -> int:
    """The replica a student is pinned to: the highest of the hashes of its name with each replica's."""
    return max(range(replicas), key=lambda each: hashlib.sha256(f"{student} {each}".encode()).digest())


@functools.cache
def message_bytes(rows: int, tokens: int, width: int, way: str) -> int:
    """What a message's call really takes, packed by the protocol's own packer."""
    generator = torch.Generator().manual_seed(0)
    message = torch.randn(rows, tokens, width, generator=generator)
    request = verbs.ForwardRequest(
        verbs.SessionRef("s" * 22, 1), "c" * 32, ("answer",), True, ("message",), {"message": message}
    )
    return len(write(request, {"shared": "bf16"}.get(way, way)))


class World:
    """A scenario, put together: hosts, teachers, students."""

    def __init__(self, scenario: Scenario, costs: Costs) -> None:
        self.scenario, self.costs, self.env = scenario, costs, simpy.Environment()
        self.seconds: list[float] = []
        self.done, self._awaited, self._enough = 0, 0, self.env.event()
        self.teachers, self.hosts = self._placed()

    def _placed(self) -> tuple[list[SimulatedTeacher], list[Host]]:
        scenario, bytes_s = self.scenario, self.scenario.gbps * 1e9 / 8
        count = -(-scenario.students // scenario.host_students)
        places = [Host(self.env, scenario.teacher_cores, bytes_s) for _ in range(scenario.replicas)]
        teachers = [SimulatedTeacher(self.env, host, self.costs, scenario.settings) for host in places]
        hosts = [Host(self.env, scenario.host_students, bytes_s) for _ in range(count)]
        if scenario.one_host:
            for host in (*places, *hosts):
                host.cpu = places[0].cpu
        return teachers, hosts

    def run(self) -> Outcome:
        """Warms up and measures; both end after so many steps of all students together."""
        scenario, env = self.scenario, self.env
        for number in range(scenario.students):
            env.process(self._student(number))
        env.run(self._after(scenario.warm_steps * scenario.students))
        self.seconds.clear()
        for teacher in self.teachers:
            teacher.served = Served()
        begun, before = env.now, self._readings()
        env.run(self._after(scenario.steps * scenario.students))
        return self._outcome(env.now - begun, before)

    def _after(self, steps: int) -> simpy.Event:
        self._awaited, self._enough = self.done + steps, self.env.event()
        return self._enough

    def _student(self, number: int) -> Process:
        scenario, name = self.scenario, f"student-{number}"
        rng = random.Random(f"{scenario.seed} {number}")
        link = _Link(self, name, number, rng)
        local = self.costs.local[scenario.local]
        yield self.env.timeout(rng.random() * 0.01 + rng.random() * local.seconds)
        while True:
            begun = self.env.now
            yield link.compute(local.before_s)
            yield from link.call("forward")
            yield link.compute(local.middle_s)
            yield from link.call("backward")
            yield link.compute(local.after_s)
            yield from link.call("step")
            link.number += 1
            self.seconds.append(self.env.now - begun)
            self.done += 1
            if self.done == self._awaited:
                self._enough.succeed()

    def _readings(self) -> dict[str, list[float]]:
        """Work done so far by every resource, in seconds of the whole of it."""
        teachers = [teacher.host for teacher in self.teachers]
        found = {
            "teacher's device": [teacher.busy_s() for teacher in self.teachers],
            "teacher's Python": [teacher.python_s for teacher in self.teachers],
            "students' processors": [host.cpu.busy() / host.cpu.capacity for host in self.hosts],
        }
        if math.isfinite(self.scenario.gbps):
            found["teacher's wire"] = [max(_share(host.sends), _share(host.receives)) for host in teachers]
            found["students' wire"] = [max(_share(host.sends), _share(host.receives)) for host in self.hosts]
        return found

    def _outcome(self, seconds: float, before: dict[str, list[float]]) -> Outcome:
        scenario, served = self.scenario, [teacher.served for teacher in self.teachers]
        shares = {
            name: [(new - old) / seconds for new, old in zip(now, before[name], strict=True)]
            for name, now in self._readings().items()
        }
        steps, ordered = len(self.seconds), sorted(self.seconds)
        batches = sum(each.batches for each in served)
        return Outcome(
            steps / seconds,
            steps * scenario.call_tokens / seconds,
            statistics.median(ordered),
            ordered[int(0.95 * (steps - 1))],
            sum(each.waited_s for each in served) / steps,
            sum(each.calls for each in served) / max(1, batches),
            {name: max(each) for name, each in shares.items()},
            {name: statistics.mean(each) for name, each in shares.items()},
            sum(each.refused for each in served) / steps,
            sum(each.recomputed for each in served) / steps,
        )


class _Link:
    """A student's place: its host, its teacher, and the way between them."""

    def __init__(self, world: World, name: str, student: int, rng: random.Random) -> None:
        scenario = world.scenario
        self.env, self.scenario, self.costs, self.name, self.rng = world.env, scenario, world.costs, name, rng
        self.host = world.hosts[student // scenario.host_students]
        self.teacher = world.teachers[rendezvous(name, scenario.replicas)]
        self.ends, self.number = world.costs.ends[scenario.way], 0
        self.tensor_bytes = message_bytes(scenario.rows, scenario.tokens, scenario.width, scenario.way)

    def compute(self, seconds: float) -> simpy.Event:
        """The student's own work: on one core, a little longer or shorter each time."""
        spread = self.costs.spread
        return self.host.cpu.use(seconds * max(0.1, self.rng.gauss(1.0, spread) if spread else 1.0), 1.0)

    def call(self, kind: str) -> Process:
        """One call, there and back; half of what each end spends is before the queue and half behind it."""
        size = _CONTROL_BYTES if kind == "step" else self.tensor_bytes
        client_s, server_s = self.ends.client_s(2 * size) / 2, self.ends.server_s(2 * size) / 2
        scenario = self.scenario
        for attempt in range(1, 1000):
            yield self.host.cpu.use(client_s, 1.0)
            yield from self._travel(size, there=True)
            yield self.teacher.python(server_s)
            try:
                reply = self.teacher.submit(self.name, kind, self.number, scenario.rows, scenario.call_tokens)
                break
            except Overloaded as error:
                yield self.env.timeout(self._patience_s(error.retry_after_s, attempt))
        yield reply
        yield self.teacher.python(server_s)
        yield from self._travel(size, there=False)
        yield self.host.cpu.use(client_s, 1.0)
        yield self.env.timeout(self.costs.wake_s)

    def _patience_s(self, asked_s: float, attempt: int) -> float:
        """As the client waits: never before the server said, then anywhere in a time that doubles."""
        return asked_s + min(asked_s * 2 ** min(attempt - 1, 16), max(asked_s, _LONGEST_WAIT_S)) * self.rng.random()

    def _travel(self, size_bytes: int, *, there: bool) -> Process:
        """Through both network cards at once, as the slower lets it, and then the delay."""
        if not math.isfinite(self.scenario.gbps):
            return
        one, other = (self.host, self.teacher.host) if there else (self.teacher.host, self.host)
        frames = size_bytes * _FRAMES
        yield one.sends.use(frames) & other.receives.use(frames)
        yield self.env.timeout(self.scenario.delay_s)


def _share(card: Any) -> float:
    return float(card.busy() / card.capacity)


def simulate(scenario: Scenario, costs: Costs) -> Outcome:
    """Runs a scenario from the beginning; the same scenario has the same outcome."""
    return World(scenario, costs).run()


def alone_s(scenario: Scenario, costs: Costs) -> float:
    """A step of one student that meets nobody, as the sum of its parts; without what varies."""
    local: Local = costs.local[scenario.local]
    size = message_bytes(scenario.rows, scenario.tokens, scenario.width, scenario.way)
    ends, engine = costs.ends[scenario.way], costs.engine
    total = local.seconds + engine.step.seconds(1, 0)
    for each in (size, size, _CONTROL_BYTES):
        total += ends.client_s(2 * each) + ends.server_s(2 * each) + costs.wake_s
        if math.isfinite(scenario.gbps):
            total += 2 * (each * _FRAMES * 8 / (scenario.gbps * 1e9) + scenario.delay_s)
    for kind in ("forward", "backward"):
        line = engine.team[kind]
        token_s = line.call_s + line.token_s * scenario.call_tokens
        total += line.start_s + token_s if engine.threads else max(line.start_s, token_s)
    return total
