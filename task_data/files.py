"""A user's own file of texts and labels, or a folder with a file for each part; draws no splits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from task_data.assembly import SEPARATOR, TextRows, text_data
from task_data.config import DataConfig
from task_data.division import Part
from task_data.multi_label import label_cells
from task_data.splits import TaskData
from task_data.tables import READERS, column_strings, read_table
from teaching_protocol.errors import DataError

__all__ = ["load_file", "load_sentence_polarity"]


def load_file(config: DataConfig) -> TaskData:
    """Loads `config.path`: a CSV, TSV, JSON-lines or Parquet file, or a folder of such files.

    A folder has a `train` file (such as `train.csv`) and may have `validation` and `test` ones; parts it does
    not have are drawn from the training rows. With `config.pair_column` each text is two, with `SEPARATOR` between. A
    column of lists, `config.label_separator` or `config.label_columns` make it a multi-label task.

    Raises:
        DataError: no path, a file that cannot be read, a column that is not there, or rows that cannot be used.
    """
    texts: list[str] = []
    labels: list[Any] = []
    parts: list[Part] = []
    for part, path in _files(config):
        frame = read_table(path)
        texts += _texts(frame, config, path)
        labels += label_cells(frame, config, path)
        parts += [part] * len(frame)
    return text_data(TextRows(texts, labels, parts), config)


def load_sentence_polarity(config: DataConfig) -> TaskData:
    """Loads 10,662 sentences of film reviews from the JSON-lines file at `config.path`, labels 0 and 1.

    Sentence polarity dataset v1.0, Pang and Lee (ACL 2005).

    Raises:
        DataError: as `load_file`.
    """
    return load_file(config)


def _texts(frame: pd.DataFrame, config: DataConfig, path: Path) -> list[str]:
    first = column_strings(frame, config.text_column, path, "text_column")
    if config.pair_column is None:
        return first
    second = column_strings(frame, config.pair_column, path, "pair_column")
    for row, pair in enumerate(zip(first, second, strict=True), start=1):
        if not all(pair):
            name = config.pair_column if pair[0] else config.text_column
            raise DataError(
                f"{path}: row {row} has nothing in column {name!r}; a pair needs both texts: fill it in or drop the row"
            )
    return list(map(SEPARATOR.join, zip(first, second, strict=True)))


def _files(config: DataConfig) -> Sequence[tuple[Part, Path]]:
    if config.path is None:
        raise DataError(f"{config.name}: `path` is not set; give the file or folder to read")
    if not config.path.is_dir():
        return [("train", config.path)]
    found: list[tuple[Part, Path]] = []
    for part in ("train", "validation", "test"):
        there = [path for ending in READERS if (path := config.path / f"{part}{ending}").is_file()]
        if len(there) > 1:
            raise DataError(f"{config.path}: {there[0].name} and {there[1].name} are both there; keep one of them")
        found += [(part, path) for path in there]
    if not any(part == "train" for part, _ in found):
        raise DataError(f"{config.path}: the folder has no train file, such as train.csv or train.jsonl")
    return found
