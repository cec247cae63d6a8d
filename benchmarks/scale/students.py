"""One student's place in simulated time: its host, its teacher, the way between them, and its loop; knows no other student."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable

import simpy

from scale.cases import CONTROL_BYTES, FRAMES, Scenario, message_bytes
from scale.costs import Costs
from scale.teacher import Host, Process, SimulatedTeacher
from teaching_protocol.errors import Overloaded

_LONGEST_WAIT_S = 5.0
_START_S = 0.01  # students do not start at one moment


class SimulatedStudent:
    """A student in a closed loop.

    Args:
        name: which its lane and its random numbers go by.
        scenario: its messages and its wire.
        costs: of its calls and its own work.
        host: where it runs.
        teacher: whom it asks.
    """

    def __init__(self, name: str, scenario: Scenario, costs: Costs, host: Host, teacher: SimulatedTeacher) -> None:
        self.name, self.scenario, self.costs, self.host, self.teacher = name, scenario, costs, host, teacher
        self.env, self.number = teacher.env, 0
        self._rng = random.Random(f"{scenario.seed} {name}")
        self._ends = costs.ends[scenario.way]
        self._tensor_bytes = message_bytes(scenario.rows, scenario.tokens, scenario.width, scenario.way)

    def steps(self, done: Callable[[float], None]) -> Process:
        """Own work, Forward, own work, Backward, own work, Step, for ever; `done` is told each step's seconds."""
        local = self.costs.local[self.scenario.local]
        yield self.env.timeout(self._rng.random() * (_START_S + local.seconds))
        while True:
            begun = self.env.now
            for seconds, kind in ((local.before_s, "forward"), (local.middle_s, "backward"), (local.after_s, "step")):
                yield self._compute(seconds)
                yield from self._call(kind)
            self.number += 1
            done(self.env.now - begun)

    def _compute(self, seconds: float) -> simpy.Event:
        """The student's own work: on one core, a little longer or shorter each time."""
        spread = self.costs.spread
        return self.host.cpu.use(seconds * max(0.1, self._rng.gauss(1.0, spread) if spread else 1.0), 1.0)

    def _call(self, kind: str) -> Process:
        """One call, there and back; half of what each end spends is before the queue and half behind it."""
        size = CONTROL_BYTES if kind == "step" else self._tensor_bytes
        client_s, server_s = self._ends.client_s(2 * size) / 2, self._ends.server_s(2 * size) / 2
        scenario = self.scenario
        for attempt in itertools.count(1):
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
        return asked_s + min(asked_s * 2 ** min(attempt - 1, 16), max(asked_s, _LONGEST_WAIT_S)) * self._rng.random()

    def _travel(self, size_bytes: int, *, there: bool) -> Process:
        """Through both network cards at once, as the slower lets it, and then the delay."""
        if not math.isfinite(self.scenario.gbps):
            return
        one, other = (self.host, self.teacher.host) if there else (self.teacher.host, self.host)
        frames = size_bytes * FRAMES
        yield one.sends.use(frames) & other.receives.use(frames)
        yield self.env.timeout(self.scenario.delay_s)
