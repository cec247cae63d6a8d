"""One teacher in simulated time: the server's real order of batches, lanes, permits and kept graphs; only seconds are modelled.

What decides is the code that serves: `Order` (fairness, merging, waiting for students known to be active, Backward before Forward), `Admission`,
`Lanes` and `GraphCache` of `teacher_server`. They take the time as a value, so they run on any clock.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

import simpy

from scale.costs import Costs
from scale.sharing import Shared
from teacher_server.config import ServerConfig
from teacher_server.engine.cohorts import Cohort, GraphCache, Key, Member
from teacher_server.jobs import Batch, Job
from teacher_server.live import LiveSettings
from teacher_server.metrics.metrics import Metrics
from teacher_server.scheduling.admission import Admission
from teacher_server.scheduling.lanes import Lanes
from teacher_server.scheduling.order import Order
from teacher_server.scheduling.policy import area
from teacher_server.scheduling.rhythm import kind_of
from teaching_protocol import verbs
from teaching_protocol.verbs import Call

REQUESTS = {
    "forward": verbs.ForwardRequest(backward_follows=True),
    "backward": verbs.BackwardRequest(),
    "step": verbs.StepRequest(),
}
Process = Generator[simpy.Event, Any, Any]


class LaneJob(Job):
    """A job of a student's lane, the graph it makes or uses, and the event of its reply."""

    lane = ""
    key: Key
    reply: simpy.Event


class Host:
    """A machine: cores, and a network card that sends and receives at once."""

    def __init__(self, env: simpy.Environment, cores: float, bytes_s: float) -> None:
        self.cpu = Shared(env, cores)
        self.sends, self.receives = Shared(env, bytes_s), Shared(env, bytes_s)


@dataclass
class Served:
    """What a teacher has done since it was last asked: calls and batches of the model, seconds calls waited, refusals, recomputes."""

    calls: int = 0
    batches: int = 0
    waited_s: float = 0.0
    refused: int = 0
    recomputed: int = 0


class SimulatedTeacher:
    """A replica on a host.

    Attributes:
        served: totals so far; whoever measures a window sets it anew.
        python_s: CPU seconds in the server's interpreter, of which there is one.
    """

    def __init__(self, env: simpy.Environment, host: Host, costs: Costs, settings: dict[str, Any]) -> None:
        config = ServerConfig(model="simulated", **settings)
        live, metrics = LiveSettings(config), Metrics()
        self.env, self.host, self.engine = env, host, costs.engine
        self.served, self.python_s, self._busy_s = Served(), 0.0, 0.0
        self._running: dict[int, tuple[Batch, float]] = {}  # by worker, and since when
        self._since: float | None = None  # when a batch began to be held back
        self._admission = Admission(live)
        self._cores = 1 if config.deterministic else self.engine.cores
        self._order = Order(live, metrics, self._admission, self._cores)
        self._lanes = Lanes()
        self._graphs = GraphCache(config.graph_cache_bytes, config.session_graph_bytes, metrics)
        self._changed, self._short_changed = env.event(), env.event()
        self._idle = set(range(self._order.at_once))
        for place in sorted(self._idle):
            env.process(self._model(place))
        env.process(self._steps())

    def python(self, seconds: float) -> simpy.Event:
        """Work in the server's one interpreter, in competition with all its other threads."""
        self.python_s += seconds
        return self.host.cpu.use(seconds, 1.0, group=self, limit=1.0)

    def busy_s(self) -> float:
        """Seconds in which the model had a batch, up to now; of one on some of the cores their share."""
        return self._busy_s + sum(self._share(batch, begun) for batch, begun in self._running.values())

    def submit(self, lane: str, kind: str, number: int, rows: int, tokens: int) -> simpy.Event:
        """Queues a call; the event is its reply.

        Raises:
            Overloaded: no permit, as the server says it.
        """
        rows, tokens = (rows, tokens) if kind != "step" else (0, 0)
        job = LaneJob(kind, None, REQUESTS[kind], Call(), rows, tokens, born=self.env.now)
        job.lane, job.bucket, job.key = lane, kind, (lane, str(number))
        try:
            self._admission.enter(lane, lane, tokens, self.env.now)
        except Exception:
            self.served.refused += 1
            raise
        self._order.arrived(job, self.env.now)
        self._lanes.push(job)
        job.reply = self.env.event()
        self._notify(short=kind_of(job) is None)
        return job.reply

    def _notify(self, *, short: bool) -> None:
        """Wakes the thread that has the model, or the one that has the Steps."""
        if short:
            changed, self._short_changed = self._short_changed, self.env.event()
        else:
            changed, self._changed = self._changed, self.env.event()
        changed.succeed()

    def _heads(self, *, short: bool) -> list[Job]:
        return [job for job in self._lanes.heads() if (kind_of(job) is None) is short]

    def _model(self, place: int) -> Process:
        """A thread that runs the model: as `ThreadScheduler._next` and `_run`."""
        while True:
            heads = self._heads(short=False)
            if not heads:
                self._since = None
            running = [batch for batch, _ in self._running.values()]
            if not heads or place > min(self._idle) or sum(batch.cores for batch in running) >= self._cores:
                yield self._changed
                continue
            waited_s = 0.0 if self._since is None else self.env.now - self._since
            choice = self._order.choose(heads, waited_s, self.env.now, running)
            if choice.hold_s > 0:
                self._since = self.env.now - waited_s
                yield self._changed | self.env.timeout(choice.hold_s)
                continue
            self._since = None
            self._lanes.take(choice.batch)
            self._order.take(choice, waited_s)
            self._idle.remove(place)
            self._running[place] = choice.batch, self.env.now
            if self._idle and len(self._lanes):
                self._notify(short=False)
            yield from self._served(choice.batch, place)

    def _served(self, batch: Batch, place: int) -> Process:
        begun = self.env.now
        self.served.batches += 1
        self.served.calls += len(batch.jobs)
        self.served.waited_s += sum(begun - job.born for job in batch.jobs)
        yield from self._compute(batch)
        self._busy_s += self._share(batch, begun)
        del self._running[place]
        self._idle.add(place)
        self._answer(batch, self.env.now - begun)

    def _share(self, batch: Batch, begun: float) -> float:
        return (self.env.now - begun) * batch.cores / self._cores

    def _steps(self) -> Process:
        """The engine's other thread: Steps, beside the model."""
        while True:
            heads = self._heads(short=True)
            if not heads:
                yield self._short_changed
                continue
            choice = self._order.choose(heads, 0.0, self.env.now)
            self._lanes.take(choice.batch)
            self._order.take(choice, 0.0)
            begun = self.env.now
            yield self.python(self.engine.step.seconds(len(choice.batch.jobs), 0))
            self._answer(choice.batch, self.env.now - begun)

    def _answer(self, batch: Batch, seconds: float) -> None:
        for job in batch.jobs:
            self._order.done(job, None, True, self.env.now)
            self._admission.leave(job.lane)
            self._admission.learn(seconds / len(batch.jobs) * batch.cores / self._cores)
            assert isinstance(job, LaneJob)
            job.reply.succeed()
        self._order.ran(batch, seconds)
        self._lanes.ran(batch)
        self._notify(short=True)
        self._notify(short=False)

    def _compute(self, batch: Batch) -> Process:
        """The seconds of a batch of the model, on its cores or on a device of its own."""
        start_s, work_s = self._seconds(batch)
        if self.engine.threads:
            width = float(batch.cores if self._cores > 1 else self.engine.threads)
            yield self.host.cpu.use((start_s + work_s) * width, width)
            return
        yield self.python(start_s) & self.env.timeout(work_s)

    def _seconds(self, batch: Batch) -> tuple[float, float]:
        """What a batch costs to be started, and what its calls and tokens cost; notes and uses up its graphs."""
        jobs, cores = batch.jobs, batch.cores if self._cores > 1 else self.engine.threads
        kind = kind_of(jobs[0]) or ""
        line = self.engine.line(kind, cores)
        runs, starts = [(line, jobs)], 1
        if kind == "forward":
            self._keep_graph(jobs)
        else:
            taken = self._graphs.take([job.key for job in jobs if isinstance(job, LaneJob)])
            kept = {key for cohort in taken for key in cohort.members}
            again = tuple(job for job in jobs if isinstance(job, LaneJob) and job.key not in kept)
            starts = len(taken) + bool(again)
            if again:
                self.served.recomputed += len(again)
                runs.append((self.engine.line("forward", cores), again))
        start_s = starts * line.start_s + sum(each.start_s for each, _ in runs[1:])
        return start_s, sum(each.call_s * len(some) + each.token_s * area(some) for each, some in runs)

    def _keep_graph(self, jobs: Sequence[Job]) -> None:
        members = {job.key: Member({}, {}, job.rows) for job in jobs if isinstance(job, LaneJob)}
        size = int(self.engine.token_bytes * area(jobs))
        self._graphs.put(Cohort(members, sum(job.rows for job in jobs), size))
