"""A user's own file of tokens with a label each: columns of lists; reads no table by itself and draws no splits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from task_data.assembly import assemble, class_numbers
from task_data.config import DataConfig
from task_data.division import Part, divide
from task_data.splits import IGNORED, Task, TaskData
from teaching_protocol.errors import DataError

__all__ = ["load_tagged"]


def load_tagged(tables: Iterable[tuple[Part, Path, pd.DataFrame]], config: DataConfig) -> TaskData:
    """Makes a task with a label for each token of tables with a column of lists of tokens and one of lists of labels.

    A row's text is its tokens with single spaces between; teachers read it so, too.

    Raises:
        DataError: no such column, a row without tokens, tokens and labels that are not as many, a token that is empty or
            holds white space, a label the training rows do not have.
    """
    words: list[list[str]] = []
    tags: list[list[str]] = []
    parts: list[Part] = []
    for part, path, frame in tables:
        found = _lists(frame, config.tokens_column, path, "tokens_column")
        labels = _lists(frame, config.tags_column, path, "tags_column")
        for row, (tokens, own) in enumerate(zip(found, labels, strict=True), start=1):
            _check_row(tokens, own, f"{path}: row {row}")
        words += found
        tags += labels
        parts += [part] * len(found)
    names = _names(tags, parts, config.name)
    numbers = _numbers(tags, parts, names, config.name)
    texts = [" ".join(row) for row in words]
    division = divide(texts, parts, config)
    return assemble(Task(config.name, names, level="token"), "text", {"text": texts}, texts, numbers, division)


def _lists(frame: pd.DataFrame, column: str, path: Path, field: str) -> list[list[str]]:
    if column not in frame.columns:
        there = ", ".join(map(str, frame.columns))
        raise DataError(f"{path}: there is no column {column!r}; the file has {there}: set `{field}` to one of them")
    for row, value in enumerate(frame[column], start=1):
        if not isinstance(value, list | tuple | np.ndarray):
            raise DataError(
                f"{path}: row {row} of column {column!r} is a {type(value).__name__}; a list is expected, as JSON-lines "
                "and Parquet files have them"
            )
    return [[_written(value) for value in row] for row in frame[column]]


def _written(value: Any) -> str:
    """A token or label as text; a class number read as 3.0 is 3."""
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return str(int(value))
    return str(value)


def _check_row(tokens: Sequence[str], tags: Sequence[str], place: str) -> None:
    if not tokens or len(tokens) != len(tags):
        raise DataError(
            f"{place} has {len(tokens)} tokens and {len(tags)} labels; give each token one label, and each row a token"
        )
    for at, (token, tag) in enumerate(zip(tokens, tags, strict=True), start=1):
        if not tag or token.split() != [token] or not token.isprintable():
            raise DataError(
                f"{place}: token {at} is {token!r} with the label {tag!r}; a token is one word without white space, and has "
                "a label: correct or drop the row"
            )


def _names(tags: Sequence[Sequence[str]], parts: Sequence[Part], source: str) -> tuple[str, ...]:
    """The classes of the training rows' tokens, in the order that rows' classes would have."""
    found = sorted({tag for row, part in zip(tags, parts, strict=True) if part == "train" for tag in row})
    return class_numbers(found, ["train"] * len(found), source)[0]


def _numbers(tags: Sequence[Sequence[str]], parts: Sequence[Part], names: Sequence[str], source: str) -> torch.Tensor:
    """Class numbers [N, longest], `IGNORED` behind a row's last token."""
    number = {name: index for index, name in enumerate(names)}
    found = torch.full((len(tags), max(map(len, tags), default=1)), IGNORED)
    for place, row in enumerate(tags):
        unknown = [tag for tag in row if tag not in number]
        if unknown:
            raise DataError(
                f"{source}: unknown label {unknown[0]!r} of a token in a {parts[place]} row ({' '.join(row)[:60]}); the "
                f"training rows have {', '.join(names[:20])}: correct the label, or add training rows with it"
            )
        found[place, : len(row)] = torch.tensor([number[tag] for tag in row])
    return found
