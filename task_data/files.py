"""A user's own file of texts and labels, or a folder with a file for each part; draws no splits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from task_data.assembly import SEPARATOR, TextRows, text_data
from task_data.config import DataConfig
from task_data.division import Part
from task_data.splits import TaskData
from task_data.tables import READERS, column_strings, read_table
from task_data.text_files import TEXT_ENDINGS, load_blocks, read_lines
from task_data.token_files import load_tagged
from teaching_protocol.errors import DataError

__all__ = ["load_file", "load_sentence_polarity"]


def load_file(config: DataConfig) -> TaskData:
    """Loads `config.path`: a CSV, TSV, JSON-lines or Parquet file, or a folder of such files.

    A folder has a `train` file (such as `train.csv`) and may have `validation` and `test` ones; parts it does
    not have are drawn from the training rows. With `config.pair_column` each text is two, with `SEPARATOR` between.
    `config.level` says what has a label; next tokens may come from plain text files (.txt), too.

    Raises:
        DataError: no path, a file that cannot be read, a column that is not there, or rows that cannot be used.
    """
    if config.level == "token":
        return load_tagged(((part, path, read_table(path)) for part, path in _files(config)), config)
    if config.level == "next_token":
        return load_blocks(((part, path, _documents(path, config)) for part, path in _files(config)), config)
    texts: list[str] = []
    labels: list[str] = []
    parts: list[Part] = []
    for part, path in _files(config):
        frame = read_table(path)
        texts += _texts(frame, config, path)
        labels += column_strings(frame, config.label_column, path, "label_column")
        parts += [part] * len(frame)
    return text_data(TextRows(texts, labels, parts), config)


def load_sentence_polarity(config: DataConfig) -> TaskData:
    """Loads 10,662 sentences of film reviews from the JSON-lines file at `config.path`, labels 0 and 1.

    Sentence polarity dataset v1.0, Pang and Lee (ACL 2005).

    Raises:
        DataError: as `load_file`.
    """
    return load_file(config)


def _documents(path: Path, config: DataConfig) -> list[str]:
    """The texts of a plain text file, or of a table's column, in order."""
    if path.name.lower().endswith(TEXT_ENDINGS):
        return read_lines(path)
    return column_strings(read_table(path), config.text_column, path, "text_column")


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
    endings = (*READERS, *TEXT_ENDINGS) if config.level == "next_token" else tuple(READERS)
    for part in ("train", "validation", "test"):
        there = [path for ending in endings if (path := config.path / f"{part}{ending}").is_file()]
        if len(there) > 1:
            raise DataError(f"{config.path}: {there[0].name} and {there[1].name} are both there; keep one of them")
        found += [(part, path) for path in there]
    if not any(part == "train" for part, _ in found):
        raise DataError(f"{config.path}: the folder has no train file, such as train.csv or train.jsonl")
    return found
