"""What is seen of a run from outside: metrics on a port or pushed, and spans; off unless the configuration says so."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from prometheus_client import disable_created_metrics, push_to_gateway

from student_client.config import TrainingConfig
from student_client.reporting.metrics import Facts, RunMetrics
from teaching_protocol.scraping import scraped
from teaching_protocol.tracing import Tracing, start_tracing

__all__ = ["Watch", "watching"]

_PUSH_EVERY_S, _PUSH_LIMIT_S = 15.0, 5.0

Say = Callable[[str], None]


class Watch:
    """Sees every step and record of a run; without metrics and spans it does nothing.

    Args:
        metrics: None counts nothing.
        tracing: of this process.
    """

    def __init__(self, metrics: RunMetrics | None = None, tracing: Tracing | None = None) -> None:
        self.metrics = metrics
        self.tracing = tracing or Tracing()

    @contextmanager
    def step(self, number: int) -> Iterator[None]:
        """A step is made inside; one that fails has no time."""
        began = time.perf_counter()
        with self.tracing.step(number):
            yield
        if self.metrics is not None:
            self.metrics.step_seconds.observe(time.perf_counter() - began)
            self.metrics.last_step.set_to_current_time()

    def record(self, record: Mapping[str, Any]) -> None:
        """A record of metrics.jsonl was written."""
        if self.metrics is not None:
            self.metrics.record(record)


@contextmanager
def watching(training: TrainingConfig, name: str, method: str, facts: Callable[[], Facts], say: Say) -> Iterator[Watch]:
    """Gives the watch of a run, its metrics served or pushed and its spans sent while the `with` lasts.

    Args:
        training: says what is watched.
        name: of the run.
        method: of the run.
        facts: how the run stands.
        say: is told where the metrics are, and once if they cannot be pushed.

    Raises:
        PortInUse: the port for metrics cannot be bound.
        ConfigError: spans are wanted and OpenTelemetry is not installed.
    """
    tracing = start_tracing("student-client", training.tracing)
    try:
        if training.metrics_port < 0 and not training.metrics_push:
            yield Watch(tracing=tracing)
            return
        disable_created_metrics()  # type: ignore[no-untyped-call]
        metrics = RunMetrics(facts)
        metrics.run.info({"name": name, "method": method})
        with _served(metrics, training, say), _pushed(metrics, training, name, say):
            yield Watch(metrics, tracing)
    finally:
        tracing.close()


@contextmanager
def _served(metrics: RunMetrics, training: TrainingConfig, say: Say) -> Iterator[None]:
    host, port = training.metrics_host, training.metrics_port
    with scraped(
        metrics.registry, "metrics port", host, port, "training.metrics_port, 0 for a free one, or -1 for none"
    ) as found:
        if found:
            say(f"metrics at http://{found}/metrics")
        yield


@contextmanager
def _pushed(metrics: RunMetrics, training: TrainingConfig, name: str, say: Say) -> Iterator[None]:
    """Pushes now and then in a thread of its own, so that a gateway that hangs holds no step up; and once at the end."""
    gateway = training.metrics_push
    if not gateway:
        yield
        return
    ending, has_failed = threading.Event(), threading.Event()

    def push() -> None:
        try:
            push_to_gateway(gateway, "student-client", metrics.registry, {"run": name}, timeout=_PUSH_LIMIT_S)
        except OSError as error:
            if not has_failed.is_set():
                say(f"warning: metrics cannot be pushed to {gateway} ({error}); the run goes on")
            has_failed.set()

    def push_on() -> None:
        while not ending.wait(_PUSH_EVERY_S):
            push()

    thread = threading.Thread(target=push_on, name="push", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ending.set()
        thread.join()
        push()
