"""Looks at the running teacher and says what is there, as plain values; keeps nothing and computes no rates.

What a look costs: `benchmarks/bench_status.py`. It holds no lock for longer than it takes to copy a list, and never waits for the engine.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from prometheus_client.registry import Collector

from teacher_server.actor import TeacherActor
from teacher_server.metrics.metrics import Metrics
from teacher_server.metrics.usage import Failure, Taken
from teacher_server.sessions.sessions import Session
from teacher_server.web.snapshot import State

__all__ = ["Levels", "Limits", "Reader", "Reading", "SessionReading", "Totals"]

_RUN_THE_MODEL = frozenset({"Forward", "Backward"})


@dataclass(frozen=True)
class SessionReading:
    """One live session; `key` is its id and goes no further than the history."""

    key: str = field(repr=False)
    student: str
    identity: str
    task: str
    epoch: int
    step: int
    state_bytes: int
    under_way: int
    opened: float
    last_call: float
    taken: Taken
    last_error: Failure | None


@dataclass(frozen=True)
class Totals:
    """What only rises, since the server's start. `batches` are those that ran the model, with `students` merged into them."""

    busy_s: float = 0.0
    queue_s: float = 0.0
    calls: float = 0.0
    tokens: float = 0.0
    steps: float = 0.0
    received_bytes: float = 0.0
    sent_bytes: float = 0.0
    batches: float = 0.0
    rows: float = 0.0
    batch_tokens: float = 0.0
    students: float = 0.0
    graph_hits: float = 0.0
    graph_misses: float = 0.0
    knowledge_hits: float = 0.0
    knowledge_misses: float = 0.0


@dataclass(frozen=True)
class Levels:
    """What rises and falls."""

    in_flight: float = 0.0
    graph_bytes: float = 0.0
    knowledge_bytes: float = 0.0
    memory_bytes: float = 0.0


@dataclass(frozen=True)
class Limits:
    """What the server may hold; what a reload changes is in the next reading."""

    permits: int
    sessions: int
    batch_tokens: int
    graph_bytes: int
    knowledge_bytes: int
    state_bytes: int
    memory_bytes: int | None = None
    memory_kind: Literal["device", "process"] = "process"


@dataclass(frozen=True)
class Reading:
    """The teacher at one moment: `at` on a clock that only goes forward, `now` in seconds since 1970."""

    at: float
    now: float
    state: State
    totals: Totals
    levels: Levels
    limits: Limits
    refused: Mapping[str, float]
    sessions: tuple[SessionReading, ...]


class Reader:
    """Reads one teacher.

    Args:
        actor: whose sessions.
        metrics: its instruments.
        state: whether it starts, serves or drains.
        limits: what it may hold now.
    """

    def __init__(
        self, actor: TeacherActor, metrics: Metrics, state: Callable[[], State], limits: Callable[[], Limits]
    ) -> None:
        self._actor = actor
        self._metrics = metrics
        self._state = state
        self._limits = limits

    def read(self) -> Reading:
        """What is there now."""
        return Reading(
            at=time.monotonic(),
            now=time.time(),
            state=self._state(),
            totals=self._totals(),
            levels=self._levels(),
            limits=self._limits(),
            refused=_by_label(self._metrics.rejected, "reason"),
            sessions=tuple(_session(each) for each in self._actor.sessions.live()),
        )

    def _totals(self) -> Totals:
        metrics = self._metrics
        queue = _sums(metrics.queue_seconds)
        transfer = _by_label(metrics.bytes, "direction")
        students = _sums(metrics.batch_students, _RUN_THE_MODEL)
        return Totals(
            busy_s=_sums(metrics.busy_seconds)["_total"],
            queue_s=queue["_sum"],
            calls=queue["_count"],
            tokens=_sums(metrics.served_tokens)["_total"],
            steps=_sums(metrics.session_steps)["_total"],
            received_bytes=transfer.get("received", 0.0),
            sent_bytes=transfer.get("sent", 0.0),
            batches=students["_count"],
            rows=_sums(metrics.batch_rows)["_sum"],
            batch_tokens=_sums(metrics.batch_tokens)["_sum"],
            students=students["_sum"],
            graph_hits=_sums(metrics.graph_hits)["_total"],
            graph_misses=_sums(metrics.recomputes)["_total"],
            knowledge_hits=_sums(metrics.knowledge_hits)["_total"],
            knowledge_misses=_sums(metrics.knowledge_misses)["_total"],
        )

    def _levels(self) -> Levels:
        metrics = self._metrics
        gauges = (metrics.in_flight, metrics.graph_bytes, metrics.knowledge_bytes, metrics.device_memory)
        return Levels(*(_sums(each)[""] for each in gauges))


def _session(session: Session) -> SessionReading:
    usage = session.usage
    return SessionReading(
        key=session.id,
        student=session.student,
        identity=session.owner,
        task=session.settings.task,
        epoch=session.epoch,
        step=session.step,
        state_bytes=session.size_bytes,
        under_way=session.at_work,
        opened=usage.opened,
        last_call=usage.last_call,
        taken=usage.taken,
        last_error=usage.last_error,
    )


def _sums(instrument: Collector, methods: frozenset[str] | None = None) -> Counter[str]:
    """An instrument's samples over all labels, or over some methods, by what their names add to its own."""
    sums: Counter[str] = Counter()
    for family in instrument.collect():
        for sample in family.samples:
            if methods is None or sample.labels["method"] in methods:
                sums[sample.name.removeprefix(family.name)] += sample.value  # type: ignore[assignment]
    return sums


def _by_label(instrument: Collector, label: str) -> dict[str, float]:
    """A counter's values by its one label."""
    found = (sample for family in instrument.collect() for sample in family.samples)
    return {sample.labels[label]: sample.value for sample in found if sample.name.endswith("_total")}
