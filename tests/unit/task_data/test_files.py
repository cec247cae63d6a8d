from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch

from task_data import load_data
from task_data.config import DataConfig
from teaching_protocol.errors import DataError

SMALL = {"labelled": 4, "unlabelled": 6, "validation": 3, "test": 2}


def table(rows: int = 20) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "sentence": [f'sentence, "number" {i}' for i in range(rows)],
            "kind": [("ham", "spam")[i % 2] for i in range(rows)],
        }
    )


def write(frame: pd.DataFrame, path: Path) -> Path:
    if path.name.endswith(".parquet"):
        frame.to_parquet(path)
    elif ".jsonl" in path.name:
        frame.to_json(path, orient="records", lines=True)
    else:
        frame.to_csv(path, index=False)
    return path


def config(path: Path, **changes: object) -> DataConfig:
    return DataConfig(
        **{"name": "file", "path": path, "text_column": "sentence", "label_column": "kind"} | SMALL | changes
    )


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.jsonl", "a.jsonl.gz", "a.parquet"])
def test_every_format_gives_the_same_splits(tmp_path: Path, name: str) -> None:
    got = load_data(config(write(table(), tmp_path / name)))
    reference = load_data(config(write(table(), tmp_path / "reference.csv")))
    assert got.task.labels == ("ham", "spam")
    for one, other in (
        (got.train, reference.train),
        (got.validation, reference.validation),
        (got.test, reference.test),
    ):
        assert one.columns["text"] == other.columns["text"] == one.teacher
        assert torch.equal(one.labels, other.labels)
    assert (len(got.train), len(got.validation), len(got.test)) == (10, 3, 2)


def test_tab_separated_text_keeps_its_quotes(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text("sentence\tkind\n" + "".join(f'"said {i}\t{i % 2}\n' for i in range(20)))
    assert all(text.startswith('"said') for text in load_data(config(path)).train.teacher)


def test_an_unlabelled_row_does_not_hold_its_label(tmp_path: Path) -> None:
    train = load_data(config(write(table(), tmp_path / "a.csv"))).train
    assert int(train.labelled.sum()) == 4
    assert (train.labels[~train.labelled] == -1).all()
    assert (train.labels[train.labelled] >= 0).all()


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.parquet"])
def test_a_float_label_column_is_a_regression(tmp_path: Path, name: str) -> None:
    frame = table().assign(kind=[i / 4 for i in range(20)])
    data = load_data(config(write(frame, tmp_path / name)))
    assert data.task.is_regression
    assert data.train.labels.dtype == torch.float32
    assert data.train.labels[~data.train.labelled].isnan().all()
    assert data.train.labels[data.train.labelled].isfinite().all()


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.parquet"])
def test_whole_number_labels_are_classes_in_the_order_of_their_values(tmp_path: Path, name: str) -> None:
    frame = table().assign(kind=[(2, 10, -1)[i % 3] for i in range(20)])
    assert load_data(config(write(frame, tmp_path / name))).task.labels == ("-1", "2", "10")


def test_a_folder_gives_its_own_parts_and_drops_what_is_tested_from_train(tmp_path: Path) -> None:
    train, test = table(20), table(24).iloc[18:]  # two rows are in both
    train.loc[18, "sentence"] = '  SENTENCE,  "Number" 18 '
    write(train, tmp_path / "train.csv")
    write(test, tmp_path / "test.jsonl")
    write(pd.concat([test.iloc[:1], table(30).iloc[27:]]), tmp_path / "validation.csv")
    data = load_data(config(tmp_path, labelled=None, test=None, validation=3))
    assert data.test.teacher == test["sentence"].tolist()
    assert len(data.validation) == 3
    assert sorted(data.train.teacher) == sorted(table(18)["sentence"])


def test_sentence_polarity_reads_its_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "sentence_polarity.jsonl.gz"
    with gzip.open(path, "wt") as lines:
        lines.writelines(json.dumps({"text": f"a film {i}", "label": i % 2}) + "\n" for i in range(30))
    data = load_data(DataConfig(name="sentence_polarity", path=path, **SMALL))
    assert data.task.labels == ("0", "1")


def text_file(name: str, content: str | bytes) -> None:
    return lambda folder: (
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode()) and folder / name
    )


def two_parts(train: list[str], validation: list[str]) -> None:
    def make(folder: Path) -> Path:
        for part, kinds in (("train", train), ("validation", validation)):
            frame = pd.DataFrame({"sentence": [f"{part} {i}" for i in range(len(kinds))], "kind": kinds})
            write(frame, folder / f"{part}.csv")
        return folder

    return make


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder: folder / "none.csv", "no such file"),
        (lambda folder: folder, "no train file"),
        (text_file("a.xml", "<a/>"), r"must end in one of \.csv"),
        (text_file("a.csv", b"\n"), "cannot be read"),
        (text_file("a.csv", "sentence,kind\n"), "no rows"),
        (text_file("a.jsonl", "\n"), "no rows"),
        (text_file("a.csv", "sentence,kind\nx,1\nx,2,3\n"), "Expected 2 fields in line 3"),
        (text_file("a.csv", "sentence,kind\nx,1,3\n"), "more fields than the header"),
        (text_file("a.csv", 'sentence,kind\n"x,1\n'), "EOF inside string"),
        (text_file("a.csv", "sentence,kind\nx\ny,1\n"), "empty label in row 1 of the train part"),
        (text_file("a.csv", b"sentence,kind\n\xff,1\n"), "UTF-8"),
        (text_file("a.csv", "text,class\nx,1\n"), "no column 'sentence'; the file has text, class"),
        (text_file("a.csv", "sentence,kind\nx,1\n  ,2\n"), "empty text in row 2"),
        (text_file("a.csv", "sentence,kind\nx,0.5\ny,inf\n"), "target 'inf' in row 2 .* not finite"),
        (text_file("a.csv", "sentence,kind\nx,0.5\ny,1e39\n"), "not finite in float32"),
        (text_file("a.csv", "sentence,kind\nx,1\ny,1\n"), "one label only"),
        (text_file("a.csv", "sentence,kind\nx,1\ny,2\n"), "distinct ones are left"),
        (text_file("a.jsonl", '{"sentence": "x", "kind": 1}\n{"sentence": \n'), "line 2 is no JSON"),
        (text_file("a.jsonl", "[1]\n"), "line 1 is a JSON list"),
        (text_file("a.jsonl", '{"sentence": "x", "kind": 1}\n{"sentence": "y"}\n'), "empty label in row 2"),
        (text_file("a.jsonl", '{"sentence": ["x"], "kind": 1}\n'), "is a list"),
        (text_file("a.jsonl", '{"sentence": "\\ud800", "kind": 1}\n'), "surrogate"),
        (text_file("a.jsonl.gz", b"no gzip"), "cannot be read"),
        (text_file("a.parquet", b"no parquet"), "cannot be read"),
        (two_parts(["a", "b"] * 9, ["a", "c", "b"]), "unknown label 'c' in row 2 of the validation part"),
        (two_parts(["0", "1"] * 9, ["0", "1.0", "1"]), r"unknown label '1\.0' in row 2 of the validation part"),
        (two_parts(["0.5", "1"] * 9, ["1", "good", "1"]), "label 'good' in row 2 of the validation part is no number"),
    ],
)
def test_bad_files_are_refused_in_a_sentence(tmp_path: Path, make: Callable[[Path], Path], words: str) -> None:
    with pytest.raises(DataError, match=words):
        load_data(config(make(tmp_path)))


def test_a_file_needs_a_path() -> None:
    with pytest.raises(DataError, match="`path` is not set"):
        load_data(DataConfig(name="file"))


def test_two_files_of_one_part_are_refused(tmp_path: Path) -> None:
    write(table(), tmp_path / "train.csv")
    write(table(), tmp_path / "train.jsonl")
    with pytest.raises(DataError, match=r"train\.csv and train\.jsonl are both there"):
        load_data(config(tmp_path))


def pairs(**changes: list[str]) -> pd.DataFrame:
    rows = range(20)
    columns = {"first": [f"question {i}" for i in rows], "second": [f"answer {i % 3}" for i in rows]}
    return pd.DataFrame(columns | {"kind": [("no", "yes")[i % 2] for i in rows]} | changes)


def test_a_pair_is_one_text_and_both_count(tmp_path: Path) -> None:
    settings = {"text_column": "first", "pair_column": "second"}
    got = load_data(config(write(pairs(), tmp_path / "pairs.jsonl"), **settings))
    texts = [text for split in (got.train, got.validation, got.test) for text in split.columns["text"]]
    assert set(texts) <= {f"question {i} [SEP] answer {i % 3}" for i in range(20)}
    assert got.train.columns["text"] == got.train.teacher
    same = pairs(first=["the same question"] * 20, second=[f"answer {i}" for i in range(20)])
    got = load_data(config(write(same, tmp_path / "same.csv"), **settings))
    assert len(got.train) == 10, "pairs that differ in their second text are different examples"


@pytest.mark.parametrize(("column", "other"), [("first", "second"), ("second", "first")])
def test_half_a_pair_is_refused(tmp_path: Path, column: str, other: str) -> None:
    frame = pairs()
    frame.loc[4, column] = ""
    with pytest.raises(DataError, match=rf"row 5 has nothing in column '{column}'"):
        load_data(config(write(frame, tmp_path / "a.csv"), text_column="first", pair_column="second"))


def test_a_pair_column_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no column 'third'.*set `pair_column`"):
        load_data(config(write(pairs(), tmp_path / "a.csv"), text_column="first", pair_column="third"))
