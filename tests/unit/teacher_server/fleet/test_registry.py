"""Who is listed: by the last report, for as long as it counts."""

from __future__ import annotations

from teacher_server.fleet.registry import Registry, Report
from teaching_protocol.directory import Replica


def report(number: int, **fields: object) -> Report:
    known = {"name": f"replica-{number}", "address": f"a{number}:1", "metrics": "", "pid": number}
    return Report(**{**known, **fields})  # type: ignore[arg-type]


def test_the_listing_is_what_was_reported_lately() -> None:
    registry = Registry(stale_s=3.0)
    registry.take(report(1, queue_s=0.5, sessions=2), 100.0)
    assert registry.take(report(0), 102.0) == (
        Replica("replica-0", "a0:1"),
        Replica("replica-1", "a1:1", "serving", 0.5, 2),
    )
    assert [each.name for each in registry.listing(103.5)] == ["replica-0"]
    assert registry.reports(110.0)["replica-1"] == (report(1, queue_s=0.5, sessions=2), 10.0), "its silence is known"


def test_who_begins_again_takes_its_place() -> None:
    registry = Registry(3.0)
    registry.take(report(0), 1.0)
    registry.take(report(0, address="b:2", pid=7), 2.0)
    assert registry.listing(2.5) == (Replica("replica-0", "b:2"),)


def test_who_ended_is_forgotten_with_what_was_asked() -> None:
    registry = Registry(3.0)
    assert not registry.ask_to_replace("replica-0")
    registry.take(report(0), 1.0)
    assert registry.ask_to_replace("replica-0")
    assert registry.asked == {"replica-0"}
    registry.forget("replica-0")
    assert (registry.listing(1.0), registry.asked) == ((), frozenset())
    registry.forget("replica-0")
