from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from student_client.students import build_student
from student_client.training.stream import Place, Stream
from task_data import load_data
from tests.unit.student_client.run_setup import run_config


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("share", [None, 0.5, 1.0])
def test_the_stream_goes_on_where_it_is_told(tmp_path: Path, share: float | None, grouped: bool) -> None:
    config = run_config(tmp_path, training__labelled_share=share, training__group_by_length=grouped)
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


def padding(folder: Path, **fields: Any) -> int:
    """Tokens of an epoch's batches that are padding."""
    config = run_config(folder, **fields)
    data = load_data(config.data)
    stream = Stream(data.train, build_student(config.student, data), config.training, [], torch.device("cpu"))
    masks = [stream.next().inputs["attention_mask"] for _ in range(stream.epoch_batches)]
    return sum(int((~mask.bool()).sum()) for mask in masks)


def test_texts_of_similar_length_share_a_batch_when_asked_to(tmp_path: Path) -> None:
    texts = [" ".join(["good" if row % 2 else "bad", *["word"] * (row % 13)]) + f" n{row}" for row in range(200)]
    lines = [f"{text},{'yes' if 'good' in text else 'no'}\n" for text in texts]
    (tmp_path / "mood.csv").write_text("text,label\n" + "".join(lines))
    assert padding(tmp_path) > 3 * padding(tmp_path, training__group_by_length=True)


def test_what_has_no_length_stays_as_it_is(tmp_path: Path) -> None:
    config = run_config(tmp_path, data__name="digits", data__path=None)
    data = load_data(config.data)
    student = build_student(config.student, data)
    grouped = config.training.model_copy(update={"group_by_length": True})
    plain, same = (Stream(data.train, student, each, [], torch.device("cpu")) for each in (config.training, grouped))
    for _ in range(3):
        assert torch.equal(plain.next().rows, same.next().rows)
