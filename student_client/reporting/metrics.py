"""Every instrument of a student's run, each a field of one object; knows no trainer and nobody who asks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from prometheus_client import CollectorRegistry, Gauge, Histogram, Info, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

__all__ = ["Facts", "RunMetrics"]

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_VARIANCES = {"message_variance": "message", "answer_variance": "answer", "question_variance": "question"}
_NORMS = {"grad_norm": "student", "codec_grad_norm": "codec", "teacher_grad_norm": "teacher_codec"}


@dataclass(frozen=True)
class Facts:
    """What a run has done and spent in this process; steps and losses of teachers over all of the run."""

    step: int = 0
    planned_steps: int = 0
    teacher_wait_s: float = 0.0
    teacher_compute_s: float = 0.0
    teacher_rows: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    recoveries: int = 0
    replayed_steps: int = 0
    paused_s: float = 0.0
    moves: int = 0


class RunMetrics(Collector):
    """One registry and its instruments; the facts are asked for when somebody scrapes.

    Args:
        facts: how the run stands.
    """

    def __init__(self, facts: Callable[[], Facts]) -> None:
        self.registry = CollectorRegistry()
        self._facts = facts
        self.process = ProcessCollector(registry=self.registry)
        self.run = Info("student_run", "The run: its name and its method.", registry=self.registry)
        self.step_seconds = Histogram(
            "student_step_seconds",
            "Seconds of a training step, the waits for teachers in it.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.last_step = self._gauge(
            "student_last_step_timestamp_seconds", "When the newest step was done, since 1970."
        )
        self.loss = self._gauge("student_loss", "Loss since the record before, whole and by part.", ["part"])
        self.validation = self._gauge("student_validation_score", "The newest validation, by score.", ["score"])
        self.variance = self._gauge("student_message_variance", "Variance of messages, by whose they are.", ["message"])
        self.grad_norm = self._gauge("student_grad_norm", "Gradient norm before clipping, by what learns.", ["module"])
        self.registry.register(self)

    def record(self, record: Mapping[str, Any]) -> None:
        """Takes in a record of metrics.jsonl."""
        losses = {"total": record.get("loss"), **record.get("parts", {})}
        for part, value in losses.items():
            if value is not None:
                self.loss.labels(part).set(value)
        for name, value in record.get("validation", {}).items():
            self.validation.labels(name).set(value)
        monitors = record.get("monitors", {})
        for gauge, names in ((self.variance, _VARIANCES), (self.grad_norm, _NORMS)):
            for name in names.keys() & monitors.keys():
                gauge.labels(names[name]).set(monitors[name])

    def collect(self) -> Iterator[Metric]:
        """The facts as metrics."""
        facts = self._facts()
        for name, text, value in (
            ("student_position_steps", "Steps done; a lost teacher may wind them back.", facts.step),
            ("student_planned_steps", "Steps of the whole run.", facts.planned_steps),
        ):
            yield GaugeMetricFamily(name, text, value=value)
        for name, text, total in (
            ("student_teacher_wait_seconds", "Seconds waited for teachers' answers.", facts.teacher_wait_s),
            ("student_teacher_compute_seconds", "Seconds teachers computed for this run.", facts.teacher_compute_s),
            ("student_teacher_rows", "Rows that teachers were asked about.", facts.teacher_rows),
            ("student_recoveries", "Times a lost teacher came back.", facts.recoveries),
            ("student_replayed_steps", "Steps made again after a lost teacher.", facts.replayed_steps),
            ("student_paused_seconds", "Seconds waited for lost teachers, or in moves.", facts.paused_s),
            (
                "student_moves",
                "Times a session moved as planned, its server draining or another its place.",
                facts.moves,
            ),
        ):
            yield CounterMetricFamily(name, text, value=total)
        moved = CounterMetricFamily("student_transfer_bytes", "Bytes of calls to teachers.", labels=["direction"])
        moved.add_metric(["sent"], facts.bytes_sent)
        moved.add_metric(["received"], facts.bytes_received)
        yield moved

    def _gauge(self, name: str, text: str, labels: list[str] | None = None) -> Gauge:
        return Gauge(name, text, labels or [], registry=self.registry)
