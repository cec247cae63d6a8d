"""Data sets of the `datasets` library: folders it saved, names it knows, and what it cannot have; nothing over a network."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import datasets
import pytest

from task_data import load_data
from task_data.config import DataConfig
from task_data.flags import data_fields
from task_data.hub import check_reachable
from task_data.splits import Task, TaskData
from teaching_protocol.errors import ConfigError, DataError

ROOT = Path(__file__).parents[3]
SMALL = {"labelled": None, "validation": 5, "text_column": "sentence", "label_column": "kind"}
KINDS = datasets.ClassLabel(names=["spam", "ham"])  # not in the alphabet's order
TEXT = datasets.Value("string")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def rows(name: str, count: int, feature: Any = KINDS) -> datasets.Dataset:
    label = (lambda row: [row % 2] if row % 3 else []) if feature is not KINDS else (lambda row: row % 2)
    values = {"id": list(range(count)), "sentence": [f"{name} {i}" for i in range(count)]}
    values["kind"] = [label(row) for row in range(count)]
    return datasets.Dataset.from_dict(
        values, datasets.Features({"id": datasets.Value("int64"), "sentence": TEXT, "kind": feature})
    )


def load(path: Path | None = None, **fields: Any) -> TaskData:
    name = {"name": "file", "path": path} if path else {}
    return load_data(DataConfig.model_validate(SMALL | name | fields))


def test_a_saved_folder_has_its_own_parts_and_class_names(tmp_path: Path) -> None:
    parts = {"train": rows("a", 30), "validation": rows("b", 9), "test": rows("c", 7)}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "saved")
    data = load(tmp_path / "saved")
    assert data.task == Task("file", ("ham", "spam"))
    assert [len(split) for split in (data.train, data.validation, data.test)] == [30, 5, 7]
    assert data.test.teacher == [f"c {i}" for i in range(7)]
    assert [data.task.labels[label] for label in data.test.labels] == ["spam", "ham"] * 3 + ["spam"]


def test_parts_that_are_not_there_are_drawn_without_leakage(tmp_path: Path) -> None:
    rows("a", 40).save_to_disk(tmp_path / "saved")
    data = load(tmp_path / "saved", test=8)
    splits = [set(split.teacher) for split in (data.train, data.validation, data.test)]
    assert [len(split) for split in splits] == [27, 5, 8]
    assert len(set.union(*splits)) == 40


def test_splits_are_those_that_are_named(tmp_path: Path) -> None:
    parts = {"fit": rows("a", 30), "validation": rows("b", 9), "test": rows("c", 7)}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "saved")
    data = load(tmp_path / "saved", train_split="fit", test_split="validation")
    assert all(text.startswith("b") for text in data.test.teacher)
    assert all(text.startswith("a") for text in [*data.train.teacher, *data.validation.teacher])
    data = load(tmp_path / "saved", train_split="fit", test_split="", validation_split="test")
    assert {str(text)[0] for text in data.test.teacher} == {"a"}
    for fields, sentence in (
        ({}, "there is no split 'train', there are fit, validation, test; set data.train_split to one of them"),
        ({"train_split": "fit", "test_split": "fit"}, "name each once"),
        (
            {"train_split": "fit", "label_column": "label"},
            "there is no column 'label'; the file has id, sentence, kind",
        ),
    ):
        with pytest.raises(DataError, match=sentence):
            load(tmp_path / "saved", **fields)


def test_lists_of_classes_are_a_multi_label_task(tmp_path: Path) -> None:
    rows("a", 40, datasets.List(KINDS)).save_to_disk(tmp_path / "saved")
    data = load(tmp_path / "saved")
    assert data.task == Task("file", ("ham", "spam"), "multi_label")
    assert {tuple(row) for row in data.train.labels.tolist()} == {(0.0, 0.0), (1.0, 0.0), (0.0, 1.0)}


def test_hidden_labels_are_said(tmp_path: Path) -> None:
    hidden = rows("c", 4).map(lambda row: {"kind": -1})
    datasets.DatasetDict({"train": rows("a", 30), "test": hidden}).save_to_disk(tmp_path / "saved")
    with pytest.raises(
        DataError, match=r"label -1, expected 0 to 1: the labels of this split are hidden; set data\.test_split"
    ):
        load(tmp_path / "saved")
    assert len(load(tmp_path / "saved", test_split="").test) == 6


SUBSETS = {"plain": {"train": 30, "test": 6}, "other": {"train": 40, "validation": 7, "test": 6}}


def hub_folder(folder: Path) -> None:
    """A data set as a repository of the hub lies on a disk, with two subsets; the library takes it before the hub."""
    said = "---\nconfigs:\n"
    for subset, parts in SUBSETS.items():
        (folder / "someone/moods" / subset).mkdir(parents=True)
        said += f"- config_name: {subset}\n  data_files:\n"
        for part, size in parts.items():
            rows(f"{subset} {part}", size).to_parquet(folder / f"someone/moods/{subset}/{part}-0.parquet")
            said += f"  - split: {part}\n    path: {subset}/{part}-*\n"
    (folder / "someone/moods/README.md").write_text(f"{said}---\n")


def test_a_data_set_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub_folder(tmp_path)
    monkeypatch.chdir(tmp_path)
    data = load(name="someone/moods", subset="plain")
    assert data.task == Task("someone/moods", ("ham", "spam"))
    assert (len(data.train), data.test.teacher) == (25, [f"plain test {i}" for i in range(6)])
    with pytest.raises(DataError, match=r"someone/moods: it cannot be had .*Config name is missing"):
        load(name="someone/moods")


def test_a_data_set_by_its_name_as_a_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub_folder(tmp_path)
    monkeypatch.chdir(tmp_path)
    data = load(name="someone/moods", subset="other", streaming=True, shuffle_rows=30)
    assert data.task == Task("someone/moods", ("ham", "spam"))
    assert [len(split) for split in (data.train, data.validation, data.test)] == [30, 5, 6]
    assert data.stream is not None
    rest, behind = data.stream.block(data.stream.block(None)[1])
    assert (rest.teacher, behind) == ([f"other train {i}" for i in range(30, 40)], None)
    assert [data.task.labels[label] for label in rest.labels] == ["spam", "ham"] * 5
    with pytest.raises(DataError, match=r"no rows for validation; of a stream nothing is drawn"):
        load(name="someone/moods", subset="plain", streaming=True)


def test_code_that_a_data_set_brings_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "someone/moods").mkdir(parents=True)
    (tmp_path / "someone/moods/moods.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="someone/moods: it cannot be had"):
        load(name="someone/moods")
    assert not (tmp_path / "ran").exists()


def test_offline_is_respected_and_said() -> None:
    with pytest.raises(
        DataError, match=r"nobody/nothing.*OfflineModeIsEnabled.*HF_HUB_OFFLINE=1 takes what the cache has"
    ):
        load(name="nobody/nothing")


def test_a_hub_that_cannot_be_reached_is_said_at_once(tmp_path: Path) -> None:
    """In a process that is not offline, where the hub's address refuses."""
    code = (
        "from task_data import load_data\nfrom task_data.config import DataConfig\n"
        "load_data(DataConfig(name='nobody/nothing'))\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    environment |= {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60
    )
    assert "DataError: nobody/nothing: it cannot be had from the Hugging Face hub (ConnectError" in done.stderr
    assert "a folder that `save_to_disk` wrote" in done.stderr
    assert time.monotonic() - began < 20


def test_a_folder_of_the_name_needs_no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "someone/moods").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    check_reachable(DataConfig(name="someone/moods"))


def test_what_the_flag_means(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    (tmp_path / "here/there").touch()
    assert data_fields("someone/moods") == {"data.name": "someone/moods"}
    assert data_fields("here/there") == {"data.name": "file", "data.path": "here/there"}
    for wrong in ("nothing", "a/b/c"):
        with pytest.raises(ConfigError, match="a file or folder that exists, or OWNER/NAME"):
            data_fields(wrong)
    for gone in ("some/mails.csv", "./mails", "/gone"):
        with pytest.raises(ConfigError, match=f"there is no file or folder {gone}; check the path"):
            data_fields(gone)
    with pytest.raises(ValueError, match=r"expected one of newsgroups.*or OWNER/NAME of the Hugging Face hub"):
        DataConfig(name="nothing")
