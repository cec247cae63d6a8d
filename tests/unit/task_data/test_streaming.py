"""Rows that are read as they are needed: all of them once, the same from any state, in bounded memory."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pytest
import torch

from task_data import RowStream, TaskData, load_data
from task_data.config import DataConfig
from teaching_protocol.errors import DataError

ROOT = Path(__file__).parents[3]
ROWS, BLOCK = 57, 10
FIELDS = {"name": "file", "streaming": True, "labelled": None, "validation": 6, "shuffle_rows": BLOCK}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def table(name: str, rows: int, start: int = 0) -> pd.DataFrame:
    numbers = range(start, start + rows)
    return pd.DataFrame({"text": [f"{name} {i}" for i in numbers], "label": [("no", "yes")[i % 2] for i in numbers]})


def write(frame: pd.DataFrame, path: Path) -> None:
    if path.suffix == ".parquet":
        frame.to_parquet(path, row_group_size=7)
    elif ".jsonl" in path.name:
        text = frame.to_json(orient="records", lines=True)
        path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    else:
        frame.to_csv(path, index=False)


def folder_of(folder: Path, form: str) -> Path:
    """57 training rows, of which one is tested, and parts to validate and test."""
    train = pd.concat([table("a", ROWS - 1), table("c", 1)])
    held = {"validation": table("b", 8), "test": table("c", 5)}
    if form == "saved":
        parts = {"train": train} | held
        frames = {name: datasets.Dataset.from_pandas(each.reset_index(drop=True)) for name, each in parts.items()}
        datasets.DatasetDict(frames).save_to_disk(folder / "saved")
        return folder / "saved"
    if form == "shards":
        for number in range(3):
            write(train[number * 20 : number * 20 + 20], folder / f"train-{number}.parquet")
        form = ".jsonl"
    else:
        write(train, folder / f"train{form}")
    for name, each in held.items():
        write(each, folder / f"{name}{form}")
    return folder


def load(path: Path, **fields: Any) -> TaskData:
    return load_data(DataConfig.model_validate(FIELDS | {"path": path} | fields))


def stream_of(path: Path, **fields: Any) -> RowStream:
    stream = load(path, **fields).stream
    assert stream is not None
    return stream


def blocks(stream: RowStream, state: str | None = None) -> Iterator[tuple[list[str], str | None]]:
    while True:
        split, state = stream.block(state)
        yield [str(text) for text in split.teacher], state
        if state is None:
            return


def texts_of(found: Iterable[tuple[list[str], str | None]]) -> list[list[str]]:
    return [texts for texts, _ in found]


@pytest.mark.parametrize("form", [".jsonl", ".jsonl.gz", ".parquet", "shards", "saved"])
def test_every_row_comes_once_and_goes_on_from_any_state(tmp_path: Path, form: str) -> None:
    path = folder_of(tmp_path, form)
    data = load(path)
    assert (data.task.labels, len(data.validation), len(data.test)) == (("no", "yes"), 6, 5)
    assert data.train.teacher == [f"a {i}" for i in range(BLOCK)]
    found = list(blocks(stream_of(path)))
    assert [text for texts, _ in found for text in texts] == [f"a {i}" for i in range(ROWS - 1)]
    assert max(len(texts) for texts, _ in found) == BLOCK
    for number, (_, state) in enumerate(found[:-1]):
        json.loads(state or "")
        assert texts_of(blocks(stream_of(path), state)) == texts_of(found[number + 1 :])
    state = None
    for expected, _ in found:  # each block read by a stream of its own, which another such stream sent there
        split, state = stream_of(path).block(state)
        assert split.teacher == expected
    assert state is None


def test_a_stream_is_gone_back_to_and_read_again(tmp_path: Path) -> None:
    stream = stream_of(folder_of(tmp_path, ".jsonl"))
    found = list(blocks(stream))
    assert texts_of(blocks(stream)) == texts_of(found)
    assert texts_of(blocks(stream, found[1][1])) == texts_of(found[2:])


def test_labels_are_the_tasks_and_may_be_missing(tmp_path: Path) -> None:
    path = folder_of(tmp_path, ".jsonl")
    rows = [{"text": f"a {i}", "label": (None, "no", "yes")[i % 3]} for i in range(9)]
    (path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    train = load(path).train
    assert train.labelled.tolist() == [False, True, True] * 3
    assert train.labels.tolist() == [-1, 0, 1] * 3


def test_numbers_and_lists_are_told_by_the_rows_that_are_held(tmp_path: Path) -> None:
    for name, labels, kind in (("a", [0.5, 1.5], "regression"), ("b", [["x"], ["x", "y"]], "multi_label")):
        path = tmp_path / name
        path.mkdir()
        for part, rows in (("train", 30), ("validation", 8), ("test", 5)):
            lines = [{"text": f"{part} {i}", "label": labels[i % 2]} for i in range(rows)]
            (path / f"{part}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        data = load(path)
        assert (data.task.kind, data.train.labels.dtype) == (kind, torch.float32)
        assert len(data.train.labels) == BLOCK


def late_label(path: Path) -> None:
    write(pd.concat([table("a", 30), pd.DataFrame({"text": ["late"], "label": ["maybe"]})]), path / "train.jsonl")


def test_a_class_that_comes_late_is_named_in_advance(tmp_path: Path) -> None:
    path = folder_of(tmp_path, ".jsonl")
    late_label(path)
    with pytest.raises(
        DataError, match=r"unknown label 'maybe'; known from .* are no, yes: name all classes in data\.classes"
    ):
        list(blocks(stream_of(path)))
    assert load(path, classes=("no", "yes", "maybe")).task.labels == ("no", "yes", "maybe")
    assert len(list(blocks(stream_of(path, classes=("no", "yes", "maybe"))))) == 4


@pytest.mark.parametrize(
    ("fields", "gone", "sentence"),
    [
        ({"labelled": 300}, "", r"data\.labelled: received 300 with data\.streaming, expected null"),
        (
            {},
            "test.jsonl",
            r"there are no rows for test; .* put a test file beside the training one, or set data\.test_split",
        ),
        ({"name": "digits"}, "", "received data.name 'digits', expected file, with data.path a folder, or OWNER/NAME"),
        ({"label_column": "kind"}, "", "there is no column 'kind'"),
        ({"validation": 500}, "", "validation asks for 500 rows, but 8 distinct ones are left"),
    ],
)
def test_what_cannot_be_streamed_is_refused(tmp_path: Path, fields: dict[str, Any], gone: str, sentence: str) -> None:
    path = folder_of(tmp_path, ".jsonl")
    if gone:
        (path / gone).unlink()
    with pytest.raises(DataError, match=sentence):
        load(path, **fields)


def test_a_csv_is_not_streamed(tmp_path: Path) -> None:
    path = folder_of(tmp_path, ".csv")
    with pytest.raises(DataError, match=r"a \.csv file is not streamed; write it as JSON lines or Parquet"):
        load(path)


def test_a_broken_line_far_behind_is_said(tmp_path: Path) -> None:
    path = folder_of(tmp_path, ".jsonl")
    with (path / "train.jsonl").open("a") as lines:
        lines.write("{broken\n")
    with pytest.raises(DataError, match=r"train\.jsonl: cannot be (read on|streamed)"):
        list(blocks(stream_of(path)))


PEAK = """
import resource, sys
from pathlib import Path
from task_data import load_data
from task_data.config import DataConfig
data = load_data(DataConfig(name="file", path=Path(sys.argv[1]), streaming=True, labelled=None, validation=6, shuffle_rows=500))
rows, state = 0, None
while True:
    split, state = data.stream.block(state)
    rows += len(split)
    if state is None:
        break
print(rows, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """A file of 60 MB against one of 6 MB: the peaks of the processes differ by less than a third of that."""
    found = {}
    for size in (2_000, 20_000):
        folder = tmp_path / str(size)
        folder.mkdir()
        with (folder / "train.jsonl").open("w") as lines:
            for row in range(size):
                lines.write(f'{{"text": "a {row} {"word " * 600}", "label": "{("no", "yes")[row % 2]}"}}\n')
        for part, rows in (("validation", table("b", 8)), ("test", table("c", 5))):
            write(rows, folder / f"{part}.jsonl")
        done = subprocess.run(
            [sys.executable, "-c", PEAK, str(folder)], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True
        )
        rows, peak = map(int, done.stdout.split())
        assert rows == size
        found[size] = peak
    assert (tmp_path / "20000/train.jsonl").stat().st_size > 58e6
    assert found[20_000] - found[2_000] < 18
