"""What models weigh, against what they are, and how fast they are, against real work; in turns."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from student_client.methods import Methods
from student_client.reporting.footprint import Footprint, as_values, size_rows
from student_client.reporting.weighing import count_parameters, weigh
from teacher_server.actor import TeacherActor
from teacher_server.local import local_teacher
from tests.unit.student_client.method_setup import MODALITIES, enrolled, frozen, settings, student_and_data
from tests.unit.student_client.student_data import tiny


@pytest.fixture
def teacher(model_folder: Callable[[str], Path]) -> TeacherActor:
    return local_teacher(str(model_folder("bert")), device="cpu")


def test_students_and_a_teacher_are_weighed_together(teacher: TeacherActor, tmp_path: Path) -> None:
    student, data = student_and_data("text")
    wide, _ = tiny("text", width=64)
    student.train()
    with enrolled(teacher, settings(names=("fitnets",)), student, data) as (method, teachers):
        assert isinstance(method, Methods)
        before = torch.get_rng_state()
        found = weigh({"student": student, "wide": wide}, {"teacher": teachers.first}, data.train)
        card = teachers.first.teacher.card
    assert card.parameters > 30_000
    assert torch.equal(before, torch.get_rng_state())
    assert student.training
    assert list(found) == ["student", "wide", "teacher"]
    wide.save(tmp_path / "wide")
    assert found["wide"].disk_bytes == sum(path.stat().st_size for path in (tmp_path / "wide").iterdir())
    assert found["wide"].parameters == count_parameters(wide) > found["student"].parameters
    assert (found["teacher"].parameters, found["teacher"].disk_bytes) == (card.parameters, card.weight_bytes)
    assert {each.rows for each in found.values()} == {13}  # a third of the 40 rows
    for each in found.values():
        assert each.rows_per_s == pytest.approx(1e3 * 13 / each.batch_ms)


def test_a_slower_student_is_slower(monkeypatch: pytest.MonkeyPatch) -> None:
    student, data = tiny("text")
    slow, _ = tiny("text", layers=24)
    found = weigh({"student": student, "slow": slow}, {}, data.train)
    assert found["student"].batch_ms < found["slow"].batch_ms


def test_rows_of_the_table_hold_students_against_the_teacher() -> None:
    sizes = {
        "student": Footprint(1_000_000, 4_000_000, 10.0, 32, 4_100_000),
        "teacher foundation": Footprint(20_000_000, 80_000_000, 160.0, 32, 80_000_000),
        "teacher other": Footprint(),
    }
    assert list(size_rows(sizes)) == [
        ("student", "1.00 M", "4.1 MB", "3200", "20.0x", "16.0x"),
        ("teacher foundation", "20.00 M", "80.0 MB", "200", "–", "–"),
        ("teacher other", "0.00 M", "–", "–", "–", "–"),
    ]
    assert as_values(sizes)["student"] == {
        "parameters": 1_000_000, "size_bytes": 4_000_000, "batch_ms": 10.0, "rows": 32, "disk_bytes": 4_100_000,
        "rows_per_s": 3200.0,
    }  # fmt: skip
    assert str(sizes["student"]) == "1.00 M parameters, 4.1 MB on disk, 3200 rows/s (10.0 ms for 32)"


@pytest.mark.parametrize("modality", MODALITIES)
def test_a_teacher_has_no_answer_in_its_cache(modality: str) -> None:
    """Weighed twice about the same rows, the second time costs it time, too."""
    student, data = student_and_data(modality)
    with enrolled(local_teacher(frozen(modality)), settings(names=("fitnets",)), student, data) as (_, teachers):
        found = [weigh({"s": student}, {"t": teachers.first}, data.train) for _ in range(2)]
        assert min(size.batch_ms for each in found for size in each.values()) > 0
        assert min(size.rows_per_s for each in found for size in each.values()) > 0
