"""GLUE from small folders of the same layout as its own files, and through the `datasets` library where it is."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import get_args

import pandas as pd
import pytest

from task_data import TaskData, load_data
from task_data.assembly import SEPARATOR
from task_data.config import DataConfig, GlueTask
from teaching_protocol.errors import DataError

SMALL = {"name": "glue", "labelled": 6, "unlabelled": 6, "validation": 5}

MNLI = (
    "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\tsentence1_parse\tsentence2_parse"
    "\tsentence1\tsentence2\tlabel1\t"
)
HEADERS: dict[GlueTask, str] = {
    "cola": "",
    "mnli": MNLI + "gold_label",
    "mrpc": "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String",
    "qnli": "index\tquestion\tsentence\tlabel",
    "qqp": "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate",
    "rte": "index\tsentence1\tsentence2\tlabel",
    "sst2": "sentence\tlabel",
}
FOLDERS = {"cola": "CoLA", "mnli": "MNLI", "mrpc": "MRPC", "qnli": "QNLI", "qqp": "QQP", "rte": "RTE", "sst2": "SST-2"}
ENTAILMENT = {"entailment": "entailment", "not_entailment": "not_entailment"}
CLASSES: dict[GlueTask, dict[str, str]] = {
    "cola": {"0": "unacceptable", "1": "acceptable"},
    "mnli": {"contradiction": "contradiction", "entailment": "entailment", "neutral": "neutral"},
    "mrpc": {"0": "not_equivalent", "1": "equivalent"},
    "qnli": ENTAILMENT,
    "qqp": {"0": "not_duplicate", "1": "duplicate"},
    "rte": ENTAILMENT,
    "sst2": {"0": "negative", "1": "positive"},
}
"""The class by the label as the files write it."""


def label_of(task: GlueTask, number: int) -> str:
    return list(CLASSES[task])[number % len(CLASSES[task])]


def line(task: GlueTask, part: str, number: int) -> str:
    """A row as GLUE writes it; the text has quotes that no row closes."""
    one, two = f'the "{part} text {number}', f"'its pair {number}"
    label = label_of(task, number)
    fields = {
        "cola": ["gj04", label, "*" if label == "0" else "", one],
        "mnli": [*"01234567", one, two, *([label] * 5 if part == "dev" else [label]), label],
        "mrpc": [label, "11", "22", one, two],
        "qqp": ["0", "1", "2", one, two, label],
        "sst2": [one, label],
    }
    return "\t".join(fields.get(task, [str(number), one, two, label]))


def header(task: GlueTask, part: str) -> str:
    return MNLI + "label2\tlabel3\tlabel4\tlabel5\tgold_label" if (task, part) == ("mnli", "dev") else HEADERS[task]


def write(folder: Path, task: GlueTask, end: str = "\n") -> Path:
    own = folder / FOLDERS[task]
    own.mkdir()
    for part, rows in (("train", 30), ("dev", 8)):
        lines = [header(task, part)] * (task != "cola") + [line(task, part, number) for number in range(rows)]
        name = "dev_matched" if (task, part) == ("mnli", "dev") else part
        (own / f"{name}.tsv").write_bytes("".join(each + end for each in lines).encode())
    return own


def load(path: Path | None, task: GlueTask = "sst2", **changes: object) -> TaskData:
    return load_data(DataConfig(**SMALL | {"path": path, "glue_task": task} | changes))


@pytest.mark.parametrize("task", get_args(GlueTask))
def test_every_task_is_read_from_its_own_files(tmp_path: Path, task: GlueTask) -> None:
    own = write(tmp_path, task)
    data = load(tmp_path, task)
    assert data.task.labels == tuple(sorted(CLASSES[task].values()))
    pair = task not in ("cola", "sst2")
    expected = [
        f"the \"dev text {row}{SEPARATOR}'its pair {row}" if pair else f'the "dev text {row}' for row in range(8)
    ]
    assert data.test.teacher == data.test.columns["text"] == expected, "the dev set, with its quotes, in its order"
    found = [data.task.labels[label] for label in data.test.labels.tolist()]
    assert found == [CLASSES[task][label_of(task, row)] for row in range(8)]
    assert (len(data.train), len(data.validation)) == (12, 5)
    assert all(" text " in text and '"train' in text for text in [*data.train.teacher, *data.validation.teacher])
    assert load(own, task).train.teacher == data.train.teacher, "the task's folder, or the one that has it"


def test_lines_may_end_as_on_windows_and_the_file_may_begin_with_a_mark(tmp_path: Path) -> None:
    own = write(tmp_path, "mrpc", end="\r\n")
    (own / "train.tsv").write_bytes(b"\xef\xbb\xbf" + (own / "train.tsv").read_bytes())
    data = load(own, "mrpc")
    assert data.test.teacher[3].endswith("pair 3")
    assert len(data.train) == 12


def test_a_row_with_too_few_fields_is_left_out(tmp_path: Path) -> None:
    own = write(tmp_path, "qqp")
    with (own / "dev.tsv").open("a") as more:
        more.write("9\t1\t2\tcut off\n\n" + line("qqp", "dev", 9) + "\n")
    assert [text[-1] for text in load(own, "qqp").test.teacher] == list("012345679")


def test_a_pair_in_both_parts_is_tested_on_and_not_trained_on(tmp_path: Path) -> None:
    own = write(tmp_path, "rte")
    with (own / "train.tsv").open("a") as more:
        more.writelines(line("rte", "dev", number) + "\n" for number in range(8))
    data = load(own, "rte", labelled=None)
    assert len(data.train) + len(data.validation) == 30


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("train.tsv", "sentence\tclass\na\t1\n", "column label is missing; there are sentence, class"),
        ("train.tsv", "sentence,label\na,1\n", "column label is missing; there are sentence,label"),
        ("dev.tsv", "sentence\tlabel\na\t2\n", "unknown label '2'; expected one of 0, 1"),
        ("dev.tsv", "sentence\tlabel\n", "no row has the 2 tab-separated fields of sentence, label"),
        ("dev.tsv", "", "column label is missing"),
        ("dev.tsv", b"sentence\tlabel\n\xff\t1\n", "UTF-8"),
        ("dev.tsv", "sentence\tlabel\n  \t1\n", "empty text in row 1 of the test part"),
        ("dev.tsv", None, "cannot be read"),
        ("train.tsv", None, r"neither train.tsv nor SST-2/train.tsv is there"),
    ],
)
def test_bad_files_are_refused_in_a_sentence(
    tmp_path: Path, name: str, content: str | bytes | None, words: str
) -> None:
    path = write(tmp_path, "sst2") / name
    path.unlink()
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=words):
        load(tmp_path)


@pytest.mark.filterwarnings("ignore")  # the library's own
def test_without_a_path_the_library_loads_it_or_both_ways_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library takes a folder of the working directory before the hub; it is not among the dependencies."""
    monkeypatch.chdir(tmp_path)
    if importlib.util.find_spec("datasets") is None:
        with pytest.raises(DataError, match=r"not installed.*RTE/train\.tsv and RTE/dev\.tsv.*pip install datasets"):
            load(None, "rte")
        return
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    with pytest.raises(DataError, match=r"could not load rte.*RTE/train\.tsv.*pip install datasets"):
        load(None, "rte")
    (tmp_path / "nyu-mll/glue/rte").mkdir(parents=True)
    kinds = datasets.Features(
        {"sentence1": datasets.Value("string"), "sentence2": datasets.Value("string")}
        | {"label": datasets.ClassLabel(names=["entailment", "not_entailment"])}
    )
    for part, rows in (("train", 30), ("validation", 8)):
        frame = pd.DataFrame({"sentence1": [f"{part} {i}" for i in range(rows)], "sentence2": "b"})
        frame["label"] = [i % 2 for i in range(rows)]
        table = datasets.Dataset.from_pandas(frame, features=kinds)
        table.to_parquet(tmp_path / f"nyu-mll/glue/rte/{part}-0.parquet")
    data_files = "".join(f"  - split: {part}\n    path: rte/{part}-*\n" for part in ("train", "validation"))
    (tmp_path / "nyu-mll/glue/README.md").write_text(
        f"---\nconfigs:\n- config_name: rte\n  data_files:\n{data_files}---\n"
    )
    data = load(None, "rte")
    assert data.test.teacher == [f"validation {i}{SEPARATOR}b" for i in range(8)]
    assert data.test.labels.tolist() == [0, 1] * 4
