"""Reads the raw columns of a data set; knows no student."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from student_models.student import Columns
from teaching_protocol.errors import DataError

__all__ = ["tensor_column", "text_column"]


def text_column(columns: Columns, name: str) -> Sequence[str]:
    """A column of N strings.

    Raises:
        DataError: there are no such column, or it is a tensor.
    """
    values = _column(columns, name)
    if isinstance(values, torch.Tensor):
        raise DataError(f"column {name!r}: received a tensor, expected strings; give a data set of text")
    return values


def tensor_column(columns: Columns, name: str) -> torch.Tensor:
    """A column that is a tensor, N first.

    Raises:
        DataError: there are no such column, or it is no tensor.
    """
    values = _column(columns, name)
    if not isinstance(values, torch.Tensor):
        raise DataError(f"column {name!r}: received {type(values).__name__}, expected a tensor; check the data set")
    return values


def _column(columns: Columns, name: str) -> Sequence[str] | torch.Tensor:
    if name not in columns:
        known = ", ".join(sorted(columns)) or "none"
        raise DataError(f"column {name!r} is missing, there are {known}; give a data set of this student's modality")
    return columns[name]
