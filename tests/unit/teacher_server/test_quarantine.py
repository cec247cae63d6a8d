from __future__ import annotations

from typing import Any

import pytest

from teacher_server.config import ServerConfig
from teacher_server.live import LiveSettings
from teacher_server.metrics.metrics import Metrics
from teacher_server.scheduling.quarantine import Quarantine
from teaching_protocol.errors import InvalidTensor, NonFiniteError, Quarantined, UnknownCall

BAD = NonFiniteError("the gradients came out as NaN")


def quarantine(**facts: Any) -> tuple[Quarantine, Metrics]:
    metrics = Metrics()
    settings = {"alone_strikes": 3, "refused_strikes": 5, "refused_s": 10.0} | facts
    return Quarantine(LiveSettings(ServerConfig(model="tiny", **settings)), metrics), metrics


def strike(found: Quarantine, times: int, now: float = 0.0) -> None:
    for _ in range(times):
        found.judge("ann", BAD, now)


def test_alone_then_refused_then_on_probation() -> None:
    found, metrics = quarantine()
    strike(found, 2)
    assert not found.is_alone("ann")
    strike(found, 1)
    assert found.is_alone("ann")
    found.check("ann", 0.0)
    strike(found, 2, now=100.0)
    sentence = r"too many calls of student 'ann' failed, the last with NonFiniteError: the gradients .* for 4\.0 s more"
    with pytest.raises(Quarantined, match=sentence) as failure:
        found.check("ann", 106.0)
    assert failure.value.retry_after_s == pytest.approx(4.0)
    found.check("bob", 106.0)
    found.check("ann", 110.0)
    assert found.is_alone("ann")
    sample = metrics.registry.get_sample_value
    assert sample("teacher_strikes_total") == 5
    assert sample("teacher_quarantines_total", {"kind": "alone"}) == 1
    assert sample("teacher_quarantines_total", {"kind": "refused"}) == 1


def test_the_second_time_lasts_twice_as_long() -> None:
    found, _ = quarantine()
    strike(found, 5, now=0.0)
    strike(found, 2, now=50.0)
    with pytest.raises(Quarantined, match=r"20\.0 s more"):
        found.check("ann", 50.0)


def test_success_forgives_a_part_of_a_strike() -> None:
    found, _ = quarantine()
    strike(found, 4)
    for _ in range(5):
        found.judge("ann", None, 0.0)
    assert not found.is_alone("ann")
    for _ in range(11):
        found.judge("ann", None, 0.0)
    assert len(found) == 0


def test_a_student_whose_loss_scale_finds_its_level_is_not_refused() -> None:
    found, _ = quarantine(refused_strikes=12)
    for _ in range(10):  # each step a Forward that succeeds and a Backward that overflows
        found.judge("ann", None, 0.0)
        found.judge("ann", BAD, 0.0)
    found.check("ann", 0.0)


def test_only_what_poisons_a_batch_counts() -> None:
    found, _ = quarantine()
    for _ in range(20):
        found.judge("ann", UnknownCall("no such call"), 0.0)
    assert len(found) == 0
    found.judge("ann", InvalidTensor("another shape"), 0.0)
    assert len(found) == 1


def test_names_are_bounded() -> None:
    found, _ = quarantine()
    for number in range(5000):
        found.judge(f"student-{number}", BAD, 0.0)
    assert len(found) == 4096
