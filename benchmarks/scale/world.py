"""A scenario put together and run: hosts, teachers, students, and what they came to in the window that is measured."""

from __future__ import annotations

import math
import statistics

import simpy

from scale.cases import Outcome, Scenario, rendezvous
from scale.costs import Costs
from scale.sharing import Shared
from scale.students import SimulatedStudent
from scale.teacher import Host, Served, SimulatedTeacher


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
            name, host = f"student-{number}", self.hosts[number // scenario.host_students]
            teacher = self.teachers[rendezvous(name, scenario.replicas)]
            env.process(SimulatedStudent(name, scenario, self.costs, host, teacher).steps(self._done))
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

    def _done(self, seconds: float) -> None:
        """A student has finished a step."""
        self.seconds.append(seconds)
        self.done += 1
        if self.done == self._awaited:
            self._enough.succeed()

    def _readings(self) -> dict[str, list[float]]:
        """Work done so far by every resource, in seconds of the whole of it; Python's is counted when it is asked for."""
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
            name: [min(1.0, (new - old) / seconds) for new, old in zip(now, before[name], strict=True)]
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


def _share(card: Shared) -> float:
    return card.busy() / card.capacity


def simulate(scenario: Scenario, costs: Costs) -> Outcome:
    """Runs a scenario from the beginning; the same scenario has the same outcome."""
    return World(scenario, costs).run()
