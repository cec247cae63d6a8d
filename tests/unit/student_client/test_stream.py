from __future__ import annotations

from pathlib import Path

import pytest
import torch

from student_client.stream import Place, Stream
from student_client.students import build_student
from task_data import load_data
from tests.unit.student_client.run_setup import run_config


@pytest.mark.parametrize("share", [None, 0.5, 1.0])
def test_the_stream_goes_on_where_it_is_told(tmp_path: Path, share: float | None) -> None:
    config = run_config(tmp_path, training__labelled_share=share)
    data = load_data(config.data)
    student = build_student(config.student, data)
    whole, late = (Stream(data.train, student, config.training, ["text"], torch.device("cpu")) for _ in range(2))
    count = whole.epoch_batches
    assert count == {None: 13, 0.5: 10, 1.0: 8}[share]
    rows = [whole.next().rows for _ in range(3 * count - 2)]
    assert whole.place == Place(2, count - 2)
    late.go_to(Place(1, 6))
    for expected in rows[count + 6 :]:
        assert torch.equal(late.next().rows, expected)


def test_the_teachers_view_comes_only_when_asked_for(tmp_path: Path) -> None:
    config = run_config(tmp_path)
    data = load_data(config.data)
    student = build_student(config.student, data)
    for wanted in (["text"], []):
        batch = Stream(data.train, student, config.training, wanted, torch.device("cpu")).next()
        assert list(batch.teacher) == wanted
