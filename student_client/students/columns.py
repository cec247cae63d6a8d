"""Reads a split's columns; knows no student."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from student_client.data.splits import Split
from teaching_protocol.errors import DataError

__all__ = ["tensor_column", "text_column"]


def text_column(split: Split, name: str) -> Sequence[str]:
    """A column of N strings.

    Raises:
        DataError: the split has no such column, or it is a tensor.
    """
    values = _column(split, name)
    if isinstance(values, torch.Tensor):
        raise DataError(f"column {name!r}: received a tensor, expected strings; give a data set of text")
    return values


def tensor_column(split: Split, name: str) -> torch.Tensor:
    """A column that is a tensor, N first.

    Raises:
        DataError: the split has no such column, or it is no tensor.
    """
    values = _column(split, name)
    if not isinstance(values, torch.Tensor):
        raise DataError(f"column {name!r}: received {type(values).__name__}, expected a tensor; check the data set")
    return values


def _column(split: Split, name: str) -> Sequence[str] | torch.Tensor:
    if name not in split.columns:
        known = ", ".join(sorted(split.columns)) or "none"
        raise DataError(
            f"column {name!r} is missing, the split has {known}; give a data set of this student's modality"
        )
    return split.columns[name]
