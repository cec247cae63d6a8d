"""Rows of several labels: every form of a file gives the same task, and what cannot be meant is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from task_data import load_data
from task_data.config import DataConfig
from task_data.multi_label import in_order, rarest
from task_data.splits import Task, TaskData
from teaching_protocol.errors import DataError
from tests.unit.task_data.multi_label_files import CLASSES, FORMS, SMALL, WORDS, sample, write_form


def load(path: Path, **fields: object) -> TaskData:
    return load_data(
        DataConfig.model_validate({"name": "file", "path": path} | SMALL | FORMS.get(path.name, {}) | fields)
    )


@pytest.mark.parametrize("name", FORMS)
def test_every_form_is_the_same_task(tmp_path: Path, name: str) -> None:
    data = load(write_form(tmp_path / name, sample()))
    assert data.task == Task("file", CLASSES, "multi_label")
    assert (data.task.metric, data.task.outputs, data.task.is_regression) == ("micro_f1", 3, False)
    assert [len(split) for split in (data.train, data.validation, data.test)] == [100, 30, 30]
    assert int(data.train.labelled.sum()) == 60
    for split in (data.train, data.validation, data.test):
        assert split.labels.dtype == torch.float32
        for text, labels, is_labelled in zip(split.teacher, split.labels, split.labelled, strict=True):
            said = torch.tensor([float(WORDS[each] in str(text)) for each in CLASSES])
            assert torch.equal(labels, said) if is_labelled else bool(labels.isnan().all())


def test_the_splits_do_not_depend_on_the_form(tmp_path: Path) -> None:
    found = [load(write_form(tmp_path / name, sample())) for name in FORMS]
    assert len({tuple(data.train.teacher) for data in found}) == 1
    assert len({tuple(data.test.teacher) for data in found}) == 1


def test_columns_are_classes_in_their_own_order_even_if_never_true(tmp_path: Path) -> None:
    rows = [(text, [name for name in names if name != "calm"]) for text, names in sample()]
    data = load(write_form(tmp_path / "columns.csv", rows), label_columns=("sad", "calm", "angry"))
    assert data.task.labels == ("sad", "calm", "angry")
    assert data.test.labels[:, 1].sum() == 0
    assert data.test.labels[:, 0].sum() > 0


def write_lists(path: Path, lists: list[object]) -> Path:
    path.write_text("".join(json.dumps({"text": f"n{i}", "label": each}) + "\n" for i, each in enumerate(lists)))
    return path


@pytest.mark.parametrize(
    ("name", "lists", "fields", "sentence"),
    [
        (
            "a.jsonl",
            [["x"], "y"] * 20,
            {},
            "row 2 of column 'label' is 'y', while others are lists of labels; write ",
        ),
        ("a.jsonl", [["x"], None] * 20, {}, "row 2 of column 'label' is None"),
        ("a.jsonl", [["x"], [1.5]] * 20, {}, r"row 2 of column 'label' is \[1.5\]; a list of names or whole numbers"),
        ("a.jsonl", [["x"], []] * 20, {}, r"the training rows have 1 labels in all \(x\)"),
        (
            "a.jsonl",
            ["x", "2"] * 20,
            {"label_columns": ("text", "label")},
            "row 1 of column 'text' is 'n0'; with label_columns",
        ),
        ("a.jsonl", ["0", "1"] * 20, {"label_columns": ("label", "other")}, "there is no column 'other'"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    tmp_path: Path, name: str, lists: list[object], fields: dict[str, object], sentence: str
) -> None:
    with pytest.raises(DataError, match=sentence):
        load(write_lists(tmp_path / name, lists), **SMALL | fields)


def test_a_label_that_only_the_test_has_is_refused(tmp_path: Path) -> None:
    write_lists(tmp_path / "train.jsonl", [["x", "y"], []] * 20)
    write_lists(tmp_path / "test.jsonl", [["x", "z"]] * 4)
    with pytest.raises(DataError, match=r"unknown label 'z' in row 41 \(test\); the training rows have x, y"):
        load(tmp_path, test=None)


def test_a_part_of_single_labels_is_refused(tmp_path: Path) -> None:
    write_lists(tmp_path / "train.jsonl", [["x", "y"], []] * 20)
    write_lists(tmp_path / "test.jsonl", ["x"] * 4)
    with pytest.raises(DataError, match="40 rows have lists of labels and 4 a single one"):
        load(tmp_path, test=None)


def test_whole_numbers_are_in_the_order_of_their_values() -> None:
    assert in_order(["10", "9", "-1"]) == ("-1", "9", "10")
    assert in_order(["10", "9", "b"]) == ("10", "9", "b")


@settings(deadline=None)
@given(st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=1, max_size=30))
def test_the_rarest_class_is_one_of_the_row_and_no_rarer_one_is(rows: list[list[bool]]) -> None:
    targets = torch.tensor(rows).float()
    counts = targets.sum(0)
    for row, found in zip(targets, rarest(targets).tolist(), strict=True):
        if not row.any():
            assert found == 4
        else:
            assert row[found] == 1
            assert counts[found] == counts[row > 0].min()
