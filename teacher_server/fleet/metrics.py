"""Every instrument of a fleet itself, beside those of its teachers, and the port they are read at; knows no Ray."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, disable_created_metrics
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from teaching_protocol.scraping import scraped

__all__ = ["FleetFacts", "FleetMetrics", "serving_metrics"]


@dataclass(frozen=True)
class FleetFacts:
    """How a fleet stands: replicas by state, `wanted` among them; those lost for good and those given up for want of room."""

    counts: Mapping[str, int] = field(default_factory=lambda: {"wanted": 0, "serving": 0})
    losses: int = 0
    given_up: int = 0


class FleetMetrics(Collector):
    """One registry; the facts are asked for when somebody scrapes.

    Args:
        facts: how the fleet stands.
    """

    def __init__(self, facts: Callable[[], FleetFacts] = FleetFacts) -> None:
        self.registry = CollectorRegistry()
        self._facts = facts
        self.registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """The facts as metrics."""
        facts = self._facts()
        counts = dict(facts.counts)
        yield GaugeMetricFamily("teacher_fleet_wanted", "Replicas that there should be.", value=counts.pop("wanted"))
        there = GaugeMetricFamily("teacher_fleet_replicas", "Replicas by state.", labels=["state"])
        for state, count in counts.items():
            there.add_metric([state], count)
        yield there
        yield CounterMetricFamily("teacher_fleet_losses", "Replicas that were lost for good.", value=facts.losses)
        yield CounterMetricFamily(
            "teacher_fleet_given_up", "Replicas given up as the cluster had no room for them.", value=facts.given_up
        )


def serving_metrics(metrics: FleetMetrics, host: str, port: int) -> AbstractContextManager[str]:
    """Serves them while the `with` lasts; gives `host:port`, empty where `port` is -1.

    Raises:
        PortInUse: the port cannot be bound.
    """
    disable_created_metrics()  # type: ignore[no-untyped-call]
    remedy = "by --fleet-set metrics_port=, 0 for a free one, -1 for none"
    return scraped(metrics.registry, "the fleet's metrics port", host, port, remedy)
