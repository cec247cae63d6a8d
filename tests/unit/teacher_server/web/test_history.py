"""Curves, rates and shares from readings, and what a viewer makes of answers that bring only what is new."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from teacher_server.metrics.usage import Failure, Taken
from teacher_server.web.history import CURVES, Facts, History
from teacher_server.web.readings import Levels, Limits, Reading, SessionReading, Totals
from teacher_server.web.snapshot import Status, TeacherCard

CARD = TeacherCard(
    **dict.fromkeys(("model_name", "model_hash", "family", "device", "dtype", "release"), "x"),
    **dict.fromkeys(("layers", "width", "entry", "exit", "vocabulary_size", "labels", "max_rows", "max_tokens"), 1),
    **{name: [] for name in ("heads", "compressions", "input_ports", "output_ports")},
    deterministic=False,
    message_bytes=1,
    lease_s=1.0,
)
FACTS = Facts(100.0, CARD)
LIMITS = Limits(8, 4, 1024, 2000, 1000, 5000)
SESSION = SessionReading("secret-a", "ann", "", "news", 1, 0, 10, 0, 1000.0, 1000.0, Taken(), None)


def reading(at: float, sessions: tuple[SessionReading, ...] = (), **changes: Any) -> Reading:
    levels = changes.pop("levels", Levels())
    refused = changes.pop("refused", {})
    return Reading(at, 1000.0 + at, "serving", Totals(**changes), levels, LIMITS, refused, sessions)


def session(key: str, steps: int, at: float, opened: float = 0.0) -> SessionReading:
    taken = Taken(compute_s=0.15 * steps, queue_s=0.5 * steps, steps=steps, calls=3 * steps)
    return dataclasses.replace(SESSION, key=key, student=key, opened=1000.0 + opened, taken=taken)


def test_rates_are_of_the_last_five_intervals() -> None:
    history = History(FACTS)
    for index in range(20):
        at, steps = 2.0 * index, 10 * max(0, index - 10)
        history.add(reading(at, (session("a", steps, at),), steps=steps, busy_s=1.5 * index, tokens=100 * index))
    status = history.status()
    assert status.load.steps_per_s == pytest.approx(5.0)
    assert status.load.engine_share == pytest.approx(0.75)
    assert status.load.tokens_per_s == pytest.approx(50.0)
    (found,) = status.sessions
    assert (found.steps_per_s, found.device_share, found.wait_share) == pytest.approx((5.0, 0.75, 2.5))
    assert status.history["steps_per_s"][:11] == [0.0] * 11
    assert status.history["steps_per_s"][-1] == 5.0


def test_a_batch_that_ends_late_makes_no_more_of_a_second() -> None:
    history = History(FACTS)
    taken = Taken(compute_s=5.0)
    for at in (0.0, 2.0):
        late = dataclasses.replace(SESSION, taken=taken if at else Taken())
        history.add(reading(at, (late,), busy_s=2.5 * at))
    assert history.status().load.engine_share == 1.0
    assert history.status().sessions[0].device_share == 1.0


def test_a_new_session_is_rated_over_its_own_life() -> None:
    history = History(FACTS)
    history.add(reading(100.0, (session("a", 8, 100.0, opened=96.0),)))
    (found,) = history.status().sessions
    assert found.steps_per_s == pytest.approx(2.0)
    assert found.age_s == pytest.approx(4.0)


def test_means_of_nothing_are_null() -> None:
    history = History(FACTS)
    history.add(reading(0.0, queue_s=1.0, calls=10, batches=2, rows=8, students=4, batch_tokens=64))
    history.add(reading(2.0, queue_s=1.0, calls=10, batches=2, rows=8, students=4, batch_tokens=64))
    status = history.status()
    assert status.load.queue_s is None
    assert (status.batches.rows, status.batches.tokens, status.batches.students) == (None, None, None)
    history.add(reading(4.0, queue_s=1.6, calls=12, batches=4, rows=32, students=10, batch_tokens=256))
    status = history.status()
    assert status.load.queue_s == pytest.approx(0.3)
    assert (status.batches.rows, status.batches.tokens, status.batches.students) == (12.0, 96.0, 3.0)
    assert status.history["queue_s"] == [None, None, 0.3]


def test_hits_and_refusals_are_recent_once_the_history_is_full() -> None:
    history = History(FACTS, kept=3)
    for index in range(3):
        at = 2.0 * index
        history.add(reading(at, refused={"Overloaded": 5.0 + index}, knowledge_hits=10, knowledge_misses=10 + index))
        if index == 1:  # all there was since the start
            assert history.status().refusals[0].recent == 6
            assert history.status().knowledge.hit_share == pytest.approx(10 / 21)
    status = history.status()
    assert [(each.reason, each.recent, each.total) for each in status.refusals] == [("Overloaded", 2, 7)]
    assert status.knowledge.hit_share == 0.0
    assert status.graphs.hit_share is None
    assert (status.knowledge.hits, status.knowledge.misses) == (10, 12)


def test_refusals_come_most_frequent_first_and_those_that_never_were_not_at_all() -> None:
    history = History(FACTS)
    history.add(reading(0.0, refused={"A": 1.0, "B": 3.0, "C": 2.0, "D": 0.0}))
    assert [each.reason for each in history.status().refusals] == ["B", "C", "A"]


def test_texts_from_outside_are_cut_and_print() -> None:
    evil = "\u202e" + "<script>" + "\x00\n\u2066" + "e" * 10_000
    error = Failure("Evil\u202e", evil, 999.0)
    history = History(FACTS)
    bad = dataclasses.replace(SESSION, student=evil, identity=evil, task=evil, last_error=error)
    history.add(reading(0.0, (bad,)))
    (found,) = history.status().sessions
    assert found.student.startswith("\N{REPLACEMENT CHARACTER}<script>")
    for text in (found.student, found.identity, found.task):
        assert len(text) <= 128
        assert text.isprintable()
    assert found.last_error is not None
    assert len(found.last_error.sentence) <= 200
    assert found.last_error.sentence.isprintable()
    assert found.last_error.kind.isprintable()


def test_a_sessions_id_is_not_told() -> None:
    history = History(FACTS)
    history.add(reading(0.0, (SESSION,)))
    assert "secret-a" not in history.status().model_dump_json()
    assert "secret-a" not in repr(SESSION)


def test_every_curve_is_documented() -> None:
    history = History(FACTS)
    history.add(reading(0.0))
    assert tuple(history.status().history) == CURVES


class Viewer:
    """Puts answers together as the page does, and as docs/status_page.md says."""

    def __init__(self) -> None:
        self.sample = 0
        self.curves: dict[str, list[float | None]] = {}
        self.sessions: dict[int, list[float]] = {}

    def look(self, history: History) -> Status:
        status = history.status(self.sample)
        old = self.curves if status.after else {}
        olds = self.sessions if status.after else {}
        self.curves = {k: [*old.get(k, []), *v][-status.kept :] for k, v in status.history.items()}
        self.sessions = {s.number: [*olds.get(s.number, []), *s.history][-status.kept :] for s in status.sessions}
        self.sample = status.sample
        return status


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.sets(st.sampled_from("abcde")), st.booleans()), min_size=1, max_size=40))
def test_who_looks_now_and_then_sees_what_who_looks_anew_sees(samples: list[tuple[set[str], bool]]) -> None:
    """Whenever the viewer looks, and whoever comes and goes between; and no more is kept than may be."""
    history, viewer = History(FACTS, kept=7), Viewer()
    for index, (names, looks) in enumerate(samples):
        live = tuple(session(name, 3 * index, float(index)) for name in sorted(names))
        history.add(reading(float(index), live, steps=index * index))
        if looks:
            viewer.look(history)
    viewer.look(history)
    whole = history.status()
    assert viewer.curves == whole.history
    assert viewer.sessions == {each.number: each.history for each in whole.sessions}
    assert all(len(curve) <= 7 for curve in (*whole.history.values(), *viewer.sessions.values()))
    assert len(history._tracks) == len(samples[-1][0])


@pytest.mark.parametrize("after", [-1, 1, 93, 101, 10**30])
def test_a_sample_that_is_not_kept_gets_all(after: int) -> None:
    history = History(FACTS, kept=5)
    for index in range(100):
        history.add(reading(float(index)))
    assert history.status(after).after == 0
    assert len(history.status(after).history["sessions"]) == 5
    assert history.status(100).history["sessions"] == []
    assert len(history.status(97).history["sessions"]) == 3


def test_limits_are_those_of_the_newest_reading() -> None:
    """A reload changes what a server may hold; what it may hold is in each reading, not in the facts."""
    history = History(FACTS)
    history.add(reading(0.0))
    assert history.status().load.max_sessions == 4
    history.add(dataclasses.replace(reading(2.0), limits=dataclasses.replace(LIMITS, sessions=9, permits=3)))
    assert (history.status().load.max_sessions, history.status().load.permits) == (9, 3)
