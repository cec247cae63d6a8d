"""Token-labelled files and plain text as data sets: what is read, split and refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from task_data import IGNORED, TaskData, load_data
from task_data.assembly import HIDDEN_CLASS
from task_data.config import DataConfig
from task_data.text_files import packed
from teaching_protocol.errors import DataError

ROWS = [
    {"tokens": ["Anna", "came", f"n{row}"], "tags": ["B-per", "O", "O"]}
    if row % 2
    else {"tokens": [f"n{row}", "rain"], "tags": ["O", "O"]}
    for row in range(40)
]


def write(folder: Path, rows: list[dict[str, Any]]) -> Path:
    path = folder / "words.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def load(path: Path, level: str = "token", **fields: Any) -> TaskData:
    sizes = {"labelled": 10, "unlabelled": 8, "validation": 6, "test": 7}
    return load_data(DataConfig.model_validate({"name": "file", "path": path, "level": level, **sizes, **fields}))


def test_rows_of_tokens(tmp_path: Path) -> None:
    data = load(write(tmp_path, ROWS))
    assert (data.task.labels, data.task.level, data.modality) == (("B-per", "O"), "token", "text")
    assert [len(split) for split in (data.train, data.validation, data.test)] == [18, 6, 7]
    for split in (data.train, data.validation, data.test):
        for text, labels, known in zip(split.columns["text"], split.labels, split.labelled, strict=True):
            wanted = [0, 1, 1] if str(text).startswith("Anna") else [1, 1]
            shown = wanted if known else [HIDDEN_CLASS] * len(wanted)
            assert labels.tolist() == shown + [IGNORED] * (3 - len(wanted))
    assert list(data.train.teacher) == list(data.train.columns["text"])


def test_parquet_gives_the_same_rows(tmp_path: Path) -> None:
    pd.DataFrame(ROWS).to_parquet(tmp_path / "words.parquet")
    ours, theirs = load(write(tmp_path, ROWS)), load(tmp_path / "words.parquet")
    assert ours.train.columns == theirs.train.columns
    assert torch.equal(ours.train.labels, theirs.train.labels)


def test_class_numbers_are_in_the_order_of_their_values(tmp_path: Path) -> None:
    rows = [{"words": [f"n{row}", "b"], "pos": [10, 9]} for row in range(40)]
    data = load(write(tmp_path, rows), tokens_column="words", tags_column="pos")
    assert data.task.labels == ("9", "10")
    assert data.task.metric == "accuracy"


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"tokens": ["a", "b"], "tags": ["O"]}, "row 41 has 2 tokens and 1 labels; give each token one label"),
        ({"tokens": [], "tags": []}, "row 41 has 0 tokens"),
        ({"tokens": ["New York"], "tags": ["O"]}, "token 1 is 'New York' .* one word without white space"),
        ({"tokens": [""], "tags": ["O"]}, "token 1 is ''"),
        ({"tokens": "a b", "tags": ["O"]}, "row 41 of column 'tokens' is a str; a list is expected"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(tmp_path: Path, row: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said):
        load(write(tmp_path, [*ROWS, row]))


def test_a_label_that_training_rows_lack_is_refused(tmp_path: Path) -> None:
    write(tmp_path, ROWS).rename(tmp_path / "train.jsonl")
    write(tmp_path, [{"tokens": ["x"], "tags": ["B-org"]}]).rename(tmp_path / "test.jsonl")
    with pytest.raises(DataError, match="unknown label 'B-org' of a token in a test row"):
        load(tmp_path, test=None)


def test_columns_and_data_sets_without_tokens_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no column 'words'; the file has tokens, tags: set `tokens_column`"):
        load(write(tmp_path, ROWS), tokens_column="words")
    with pytest.raises(DataError, match=r"data\.level: received 'token' with the data set digits"):
        load(tmp_path, name="digits")


def test_plain_text_becomes_blocks(tmp_path: Path) -> None:
    lines = [f"line {number} of a long story" for number in range(120)]
    (tmp_path / "story.txt").write_text("\n\n".join(lines))
    data = load(tmp_path / "story.txt", "next_token", block_bytes=80)
    assert (data.task.level, data.task.metric, data.task.is_regression) == ("next_token", "perplexity", False)
    blocks = [text for split in (data.train, data.validation, data.test) for text in split.columns["text"]]
    assert len(set(blocks)) == len(blocks) == 31
    assert all(len(str(block).encode()) <= 80 and set(str(block).split("\n")) <= set(lines) for block in blocks)
    assert int(data.train.labelled.sum()) == 10


def test_a_column_of_a_table_and_a_folder_of_parts_are_text_too(tmp_path: Path) -> None:
    for part, rows in (("train", 60), ("test", 20)):
        lines = [f"{part} {number} and some more words" for number in range(rows)]
        (tmp_path / f"{part}.txt").write_text("\n".join(lines))
    data = load(tmp_path, "next_token", block_bytes=40, test=None)
    assert all("test" in text for text in data.test.columns["text"])
    pd.DataFrame({"text": [f"row {number} and some more" for number in range(40)]}).to_csv(tmp_path / "t.csv")
    assert len(load(tmp_path / "t.csv", "next_token", block_bytes=40).train) == 18


@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=60), max_size=12), st.integers(16, 64))
def test_packing_keeps_every_word_and_the_limit(texts: list[str], limit: int) -> None:
    blocks = list(packed(texts, limit))
    assert all(0 < len(block.encode()) <= limit for block in blocks)
    letters = ["".join(text.replace("\0", "").split()) for text in texts]
    assert "".join("".join(block.split()) for block in blocks) == "".join(letters)


def test_empty_and_missing_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(DataError, match="there is no text in it"):
        load(tmp_path / "empty.txt", "next_token")
    with pytest.raises(DataError, match="there is no such file"):
        load(tmp_path / "gone.txt", "next_token")
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="cannot be read as UTF-8 text"):
        load(tmp_path / "bad.txt", "next_token")
