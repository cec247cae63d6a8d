from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from teacher_server.metrics.metrics import Metrics
from teacher_server.metrics.student_metrics import OTHER
from teacher_server.metrics.usage import Usage
from teacher_server.models.split import FrozenTeacher
from tests.calls import Caller
from tests.integration.gate import poll
from tests.unit.teacher_server.desk import Desk

NAME = "teacher_student_tokens_total"

Series = dict[tuple[str, str], float]


def tokens(metrics: Metrics) -> Series:
    """Charged tokens by (identity, student), as a scraper reads them."""
    families = text_string_to_metric_families(generate_latest(_Only(metrics)).decode())
    return {
        (sample.labels["identity"], sample.labels["student"]): sample.value
        for family in families
        for sample in family.samples
        if sample.name == NAME
    }


class _Only(CollectorRegistry):
    """The table's part of a scrape: the rest takes longer than all of it."""

    def __init__(self, metrics: Metrics) -> None:
        super().__init__()
        self.register(metrics.students)


def session(metrics: Metrics, student: str, charged: float = 0.0, identity: str = "") -> Usage:
    usage = Usage()
    metrics.students.open(identity, student, usage)
    usage.charge(charged)
    return usage


def test_a_student_s_sessions_add_up_and_what_it_took_stays_when_they_end() -> None:
    metrics = Metrics(5)
    first = session(metrics, "ann", 10)
    assert tokens(metrics)["", "ann"] == 10
    metrics.students.close(first)
    assert tokens(metrics)["", "ann"] == 10
    session(metrics, "ann", 5)
    assert tokens(metrics)["", "ann"] == 15


def test_opening_and_closing_twice_counts_once() -> None:
    metrics = Metrics(5)
    usage = session(metrics, "ann", 10)
    metrics.students.open("", "ann", usage)
    for _ in range(2):
        metrics.students.close(usage)
    assert tokens(metrics)["", "ann"] == 10


def test_identities_keep_students_of_one_name_apart() -> None:
    metrics = Metrics(5)
    session(metrics, "ann", 1, "team-a")
    session(metrics, "ann", 2, "team-b")
    found = tokens(metrics)
    assert (found["team-a", "ann"], found["team-b", "ann"]) == (1, 2)


def test_beyond_the_limit_students_count_as_other_until_a_place_is_free() -> None:
    metrics = Metrics(2)
    ann, bob, eve = (session(metrics, name, 1) for name in ("ann", "bob", "eve"))
    assert tokens(metrics) == {("", "ann"): 1, ("", "bob"): 1, (OTHER, OTHER): 1}
    metrics.students.close(bob)
    metrics.students.close(ann)
    eve.charge(5)
    assert tokens(metrics)[OTHER, OTHER] == 6, "who began as other stays so: no series jumps"
    session(metrics, "joe", 7)  # takes the place of who ended first
    assert tokens(metrics) == {("", "ann"): 1, ("", "joe"): 7, (OTHER, OTHER): 6}


def test_no_names_at_all() -> None:
    metrics = Metrics(0)
    session(metrics, "ann", 3, "team-a")
    assert tokens(metrics) == {(OTHER, OTHER): 3}
    assert "ann" not in generate_latest(metrics.registry).decode()


@pytest.mark.parametrize("name", ['"} evil 1\n', "\\", "x" * 500, "über ☂", "\x1b[31m", "other"])
def test_names_are_cut_and_escaped(name: str) -> None:
    metrics = Metrics(5)
    session(metrics, name, 4)
    found = {student: value for (_, student), value in tokens(metrics).items() if value}
    assert list(found.values()) == [4]
    (told,) = found
    assert len(told) <= 64
    assert told.isprintable()


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abcdefgh"), st.booleans(), st.integers(1, 9)), max_size=80))
def test_the_table_is_bounded_and_no_counter_falls_while_its_series_lives(
    events: list[tuple[str, bool, int]],
) -> None:
    """Sessions come, work and go in any order; a scrape after every event."""
    metrics, live = Metrics(3), {}
    before: Series = {}
    for name, ends, charged in events:
        if name not in live:
            live[name] = session(metrics, name)
        live[name].charge(charged)
        now = tokens(metrics)
        if ends:
            metrics.students.close(live.pop(name))
            now = tokens(metrics)
        assert len(now) <= 4
        named = {student for _, student in before}
        for key, value in now.items():
            was_replaced = len(named) == 4 and key not in before
            assert was_replaced or value >= before.get(key, 0)
        assert set(live) <= {student for _, student in now} or (OTHER, OTHER) in now
        before = now
    while live:
        metrics.students.close(live.popitem()[1])
    assert not metrics.students._keys


def test_what_students_took_is_what_the_server_did(bert: FrozenTeacher) -> None:
    """Through a real engine thread: sums over students are the server's own totals."""
    desk = Desk(bert, threads=1)  # else a batch on one core of two counts half as busy
    try:
        before = _totals(desk.count)
        with Caller(desk.actor, "ann") as ann, Caller(desk.actor, "bob") as bob:
            for caller in (ann, bob, bob):
                caller.backward(caller.forward()[0])
            ann.step(1)
        gone = [now - then for now, then in zip(_totals(desk.count), before, strict=True)]
        found = [
            sum(desk.count(f"teacher_student_{name}_total", identity="", student=each) for each in ("ann", "bob"))
            for name in ("compute_seconds", "queue_seconds", "tokens")
        ]
        assert found == pytest.approx(gone)
        assert desk.count("teacher_student_calls_total", identity="", student="bob") == 4
        assert desk.count("teacher_student_steps_total", identity="", student="ann") == 1
        model_s = sum(desk.count("teacher_compute_seconds_sum", method=each) for each in ("Forward", "Backward"))
        poll(lambda: desk.count("teacher_engine_busy_seconds_total") >= model_s > 0, "the last batch is counted")
    finally:
        desk.close()


def _totals(count: Callable[..., float]) -> list[float]:
    names = ("teacher_compute_seconds_sum", "teacher_queue_seconds_sum", "teacher_served_tokens_total")
    return [sum(count(name, method=each) for each in ("Forward", "Backward", "Step")) for name in names]
