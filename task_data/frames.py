"""Tables of texts and labels, as read for each part of a data set, made into a task; reads no file."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pandas as pd

from task_data.assembly import SEPARATOR, TextRows, text_data
from task_data.config import DataConfig
from task_data.division import Part
from task_data.multi_label import label_cells
from task_data.splits import TaskData
from task_data.tables import column_strings
from teaching_protocol.errors import DataError

__all__ = ["Table", "columns_of", "frames_data", "row_texts", "text_rows"]

Table = tuple[Part, object, pd.DataFrame]
"""A part's rows, and where they were read from, for errors."""


def frames_data(tables: Iterable[Table], config: DataConfig) -> TaskData:
    """A text task of tables; errors as of `text_rows` and `assembly.text_data`."""
    return text_data(text_rows(tables, config), config)


def text_rows(tables: Iterable[Table], config: DataConfig) -> TextRows:
    """The rows of tables by the columns that the configuration names.

    Raises:
        DataError: a column that is not there, or a cell that is no text or no label.
    """
    texts: list[str] = []
    labels: list[Any] = []
    parts: list[Part] = []
    for part, source, frame in tables:
        texts += row_texts(frame, config, source)
        labels += label_cells(frame, config, source)
        parts += [part] * len(frame)
    return TextRows(texts, labels, parts)


def row_texts(frame: pd.DataFrame, config: DataConfig, source: object) -> list[str]:
    """The text of each row; of a pair both, with `SEPARATOR` between.

    Raises:
        DataError: a column that is not there, no text in a cell, or half a pair.
    """
    first = column_strings(frame, config.text_column, source, "text_column")
    if config.pair_column is None:
        return first
    second = column_strings(frame, config.pair_column, source, "pair_column")
    for row, pair in enumerate(zip(first, second, strict=True), start=1):
        if not all(pair):
            name = config.pair_column if pair[0] else config.text_column
            raise DataError(
                f"{source}: row {row} has nothing in column {name!r}; a pair needs both texts: fill it in or drop the row"
            )
    return list(map(SEPARATOR.join, zip(first, second, strict=True)))


def columns_of(config: DataConfig) -> list[str]:
    """The columns that are read."""
    labels = config.label_columns or (config.label_column,)
    return [config.text_column, *([config.pair_column] if config.pair_column else []), *labels]
