"""GLUE's text classification tasks, from GLUE's own files or the `datasets` library; draws no splits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from task_data.assembly import SEPARATOR, TextRows, text_data
from task_data.config import DataConfig, GlueTask
from task_data.division import Part
from task_data.hub import library
from task_data.splits import TaskData
from teaching_protocol.errors import DataError

__all__ = ["load_glue"]

"""Stands between the two texts of a pair; to BERT's tokenizers it is their own separator token."""

_HUB = "nyu-mll/glue"

_Row = tuple[str, str]


@dataclass(frozen=True)
class _Form:
    """How a task lies in GLUE's own files and in the `datasets` library.

    `texts` and `label` name columns of the files, `hub_texts` those of the library; `classes` are the class names by
    the label as the files write it; `columns` is the header of files that have none.
    """

    folder: str
    texts: tuple[str, ...]
    hub_texts: tuple[str, ...]
    label: str
    classes: Mapping[str, str]
    dev: str = "dev"
    hub_dev: str = "validation"
    columns: tuple[str, ...] = ()


_ENTAILMENT = {"entailment": "entailment", "not_entailment": "not_entailment"}
_PAIR = ("sentence1", "sentence2")

_FORMS: dict[GlueTask, _Form] = {
    "cola": _Form(
        "CoLA", ("sentence",), ("sentence",), "label", {"0": "unacceptable", "1": "acceptable"},
        columns=("source", "label", "mark", "sentence"),
    ),
    "mnli": _Form(
        "MNLI", _PAIR, ("premise", "hypothesis"), "gold_label",
        {name: name for name in ("entailment", "neutral", "contradiction")},
        dev="dev_matched", hub_dev="validation_matched",
    ),
    "mrpc": _Form("MRPC", ("#1 String", "#2 String"), _PAIR, "Quality", {"0": "not_equivalent", "1": "equivalent"}),
    "qnli": _Form("QNLI", ("question", "sentence"), ("question", "sentence"), "label", _ENTAILMENT),
    "qqp": _Form(
        "QQP", ("question1", "question2"), ("question1", "question2"), "is_duplicate",
        {"0": "not_duplicate", "1": "duplicate"},
    ),
    "rte": _Form("RTE", _PAIR, _PAIR, "label", _ENTAILMENT),
    "sst2": _Form("SST-2", ("sentence",), ("sentence",), "label", {"0": "negative", "1": "positive"}),
}  # fmt: skip


def load_glue(config: DataConfig) -> TaskData:
    """Loads `config.glue_task` of GLUE (Wang et al., arXiv 1804.07461).

    `config.path` names the task's folder of GLUE's own files (`train.tsv` and `dev.tsv`), or the folder that has it
    (`SST-2`, `MNLI`, `QQP`, ...); without a path the `datasets` library loads the task, if it is installed. The labels
    of GLUE's test set are not public, so its dev set is the test part here (of MNLI the matched one), and validation
    is drawn from the training rows. The two texts of a pair become one, with `SEPARATOR` between them.

    Raises:
        DataError: neither files nor the library, a file that is not as expected, or an unknown label.
    """
    form = _FORMS[config.glue_task]
    rows = _from_hub(config.glue_task, form) if config.path is None else _from_files(config.path, form)
    texts = [text for part in rows.values() for text, _ in part]
    labels = [label for part in rows.values() for _, label in part]
    return text_data(TextRows(texts, labels, [name for name, part in rows.items() for _ in part]), config)


def _from_files(folder: Path, form: _Form) -> dict[Part, list[_Row]]:
    for own in (folder / form.folder, folder):
        if (own / "train.tsv").is_file():
            return {"train": _read(own / "train.tsv", form), "test": _read(own / f"{form.dev}.tsv", form)}
    raise DataError(
        f"{folder}: neither train.tsv nor {form.folder}/train.tsv is there; give `path` the folder of GLUE's files"
    )


def _read(path: Path, form: _Form) -> list[_Row]:
    """Reads a tab-separated file in which a quote is a character as any other.

    A row with too few fields is left out, as every reader of GLUE does: QQP's own training file has some.
    """
    try:
        lines = _lines(path)
        header = list(form.columns) or next(lines, [])
        if missing := {*form.texts, form.label} - set(header):
            raise DataError(f"{path}: column {min(missing)} is missing; there are {', '.join(header)}")
        places, place = [header.index(name) for name in form.texts], header.index(form.label)
        rows = [
            (SEPARATOR.join(row[at].strip() for at in places), _class(row[place], form, path))
            for row in lines
            if len(row) >= len(header)
        ]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as a tab-separated table of UTF-8 text: {error}") from error
    if not rows:
        raise DataError(f"{path}: no row has the {len(header)} tab-separated fields of {', '.join(header)}")
    return rows


def _lines(path: Path) -> Iterator[list[str]]:
    with path.open(encoding="utf-8-sig", newline="\n") as lines:
        for line in lines:
            if line.strip():
                yield line.rstrip("\r\n").split("\t")


def _class(label: str, form: _Form, path: Path) -> str:
    if label not in form.classes:
        raise DataError(f"{path}: unknown label {label!r}; expected one of {', '.join(form.classes)}")
    return form.classes[label]


def _from_hub(task: GlueTask, form: _Form) -> dict[Part, list[_Row]]:
    advice = (
        f"set `path` to a folder of GLUE's own files ({form.folder}/train.tsv and {form.folder}/{form.dev}.tsv), "
        f"or let the `datasets` library fetch them (pip install datasets)"
    )
    try:
        datasets = library()
    except DataError as error:
        raise DataError(f"glue: `path` is not set, and {error}: {advice}") from error
    try:
        parts = {name: datasets.load_dataset(_HUB, task, split=split) for name, split in _splits(form).items()}
    except Exception as error:
        # The library raises errors of every library below it, of the network too.
        raise DataError(
            f"glue: `datasets` could not load {task} ({type(error).__name__}: {error}): {advice}"
        ) from error
    return {name: list(_hub_rows(part, form)) for name, part in parts.items()}


def _splits(form: _Form) -> dict[Part, str]:
    return {"train": "train", "test": form.hub_dev}


def _hub_rows(part: Any, form: _Form) -> Iterator[_Row]:
    names = part.features["label"].names
    for row in part:
        yield SEPARATOR.join(row[column].strip() for column in form.hub_texts), names[row["label"]]
