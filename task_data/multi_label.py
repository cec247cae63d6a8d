"""Rows that may have several labels, or none: from cells and columns as read to targets; draws no splits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
import torch

from task_data.config import DataConfig
from task_data.division import Integers, Part
from task_data.tables import column_strings
from teaching_protocol.errors import DataError

__all__ = ["Labels", "are_several", "in_order", "label_cells", "multi_hot", "rarest"]

Labels = Sequence[str] | Sequence[tuple[str, ...]]
"""Of N rows: the one label of each, or all labels of each."""

_YES, _NO = ("1", "1.0", "true"), ("0", "0.0", "false")


def label_cells(frame: pd.DataFrame, config: DataConfig, path: object) -> Labels:
    """The labels of a table's rows: of one column, of a column of lists, of one with a separator, or of columns of 0 and 1.

    Args:
        frame: as read.
        config: says which column, or columns; and the separator.
        path: where it was read from, for errors.

    Raises:
        DataError: no such column, or a cell that says no label.
    """
    if config.label_columns is not None:
        return _of_columns(frame, config.label_columns, path)
    name = config.label_column
    if name in frame.columns and any(isinstance(cell, list | tuple | np.ndarray) for cell in frame[name]):
        return [_of_list(cell, row, name, path) for row, cell in enumerate(frame[name], start=1)]
    cells = column_strings(frame, name, path, "label_column")
    if config.label_separator is None:
        return cells
    return [tuple(part.strip() for part in cell.split(config.label_separator) if part.strip()) for cell in cells]


def are_several(labels: Labels, source: str) -> bool:
    """Whether each row has all of its labels, and not one.

    Raises:
        DataError: some have one, and some a list.
    """
    lists = sum(not isinstance(each, str) for each in labels)
    if lists not in (0, len(labels)):
        raise DataError(
            f"{source}: {lists} rows have lists of labels and {len(labels) - lists} a single one; write all of them as lists"
        )
    return lists > 0


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Class names in the order of their values where all are whole numbers, else in the alphabet's."""
    found = list(names)
    if all(each.removeprefix("-").isascii() and each.removeprefix("-").isdigit() for each in found):
        return tuple(sorted(found, key=lambda name: (int(name), name)))
    return tuple(sorted(found))


def multi_hot(
    labels: Sequence[tuple[str, ...]], parts: Sequence[Part], config: DataConfig
) -> tuple[tuple[str, ...], torch.Tensor]:
    """The class names, and what each of N rows has of them [N, classes] float32.

    The classes are those of the training rows `in_order`, or `config.label_columns` in theirs.

    Raises:
        DataError: a validation or test label that no training row has, or fewer than two classes.
    """
    seen = {name for row, part in zip(labels, parts, strict=True) if part == "train" for name in row}
    names = config.label_columns or in_order(seen)
    if len(names) < 2:
        raise DataError(
            f"{config.name}: the training rows have {len(names)} labels in all ({', '.join(names)}), and several may be true "
            "of each; two or more are needed"
        )
    place = {name: number for number, name in enumerate(names)}
    found = torch.zeros(len(labels), len(names))
    for row, own in enumerate(labels):
        for name in own:
            if name not in place:
                raise DataError(
                    f"{config.name}: unknown label {name!r} in row {row + 1} ({parts[row]}); the training rows have "
                    f"{', '.join(names[:20])}: correct the label, drop the row, or add training rows with this label"
                )
            found[row, place[name]] = 1.0
    return names, found


def rarest(targets: torch.Tensor) -> Integers:
    """The rarest class of each of N rows [N], that of a row without any being the number of classes (ours).

    Drawing in proportion to it keeps rare classes in every split.
    """
    counts = targets.sum(0)
    worth = torch.where(targets > 0, counts, torch.inf)
    found = worth.argmin(1).masked_fill(~targets.any(1), targets.shape[1])
    return found.numpy().astype(np.int64)


def _of_columns(frame: pd.DataFrame, columns: Sequence[str], path: object) -> list[tuple[str, ...]]:
    found: list[list[str]] = [[] for _ in range(len(frame))]
    for name in columns:
        for row, cell in enumerate(column_strings(frame, name, path, "label_columns")):
            if cell.lower() not in _YES + _NO:
                raise DataError(
                    f"{path}: row {row + 1} of column {name!r} is {cell!r}; with label_columns a cell is 0 or 1: correct it"
                )
            if cell.lower() in _YES:
                found[row].append(name)
    return [tuple(each) for each in found]


def _of_list(cell: object, row: int, column: str, path: object) -> tuple[str, ...]:
    if not isinstance(cell, list | tuple | np.ndarray):
        raise DataError(
            f"{path}: row {row} of column {column!r} is {cell!r}, while others are lists of labels; write [] where there is none"
        )
    names = [str(each).strip() for each in cell]
    if not all(names) or any(isinstance(each, list | dict | float) or each is None for each in cell):
        raise DataError(
            f"{path}: row {row} of column {column!r} is {list(cell)}; a list of names or whole numbers is expected"
        )
    return tuple(names)
