"""Rows as read made into a `TaskData`: labels to tensors, splits drawn; knows no file format and no data set."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch

from task_data.config import DataConfig
from task_data.division import Division, Integers, Part, divide
from task_data.multi_label import Labels, are_several, in_order, multi_hot, rarest
from task_data.splits import IGNORED, Split, Task, TaskData
from teaching_protocol.errors import DataError

__all__ = [
    "HIDDEN_CLASS",
    "SEPARATOR",
    "TextRows",
    "are_targets",
    "assemble",
    "class_numbers",
    "row_keys",
    "targets",
    "text_data",
]

SEPARATOR = " [SEP] "
"""Stands between the two texts of a pair, which are read as one; a BERT-like tokenizer makes its own token of it."""

HIDDEN_CLASS = -1
"""Stands for the class of a row that is not labelled; a hidden target is NaN. Neither can enter a loss unseen."""


@dataclass(frozen=True)
class TextRows:
    """N rows of text as read: labels still as written, one or several a row, `parts` the data set's own."""

    texts: Sequence[str]
    labels: Labels
    parts: Sequence[Part]


def text_data(rows: TextRows, config: DataConfig) -> TaskData:
    """Makes a text task: a classification, or a regression when the training labels are numbers with a fraction.

    Labels are classes if all of them are whole numbers or if one is no number ("1", "spam"), and targets
    otherwise ("0.5", "3.0"). Where each row has several, it is a multi-label task. Two texts that differ only in case
    or white space count as the same example.

    Raises:
        DataError: an empty text or label, a label the training rows do not have, a target that is not finite,
            fewer rows than asked.
    """
    _refuse_empty("text", rows.texts, rows.parts, config)
    keys = row_keys(rows.texts)
    task, labels, classes = _labels_of(rows, config)
    division = divide(keys, rows.parts, config, classes)
    return assemble(task, "text", {"text": rows.texts}, rows.texts, labels, division)


def row_keys(texts: Sequence[str]) -> list[str]:
    """What makes two texts the same example: case and white space do not count."""
    return [" ".join(text.split()).casefold() for text in texts]


def _labels_of(rows: TextRows, config: DataConfig) -> tuple[Task, torch.Tensor, Integers | None]:
    """The task, the labels as `Split` has them, and the class by which rows are drawn in proportion."""
    if are_several(rows.labels, config.name):
        names, several = multi_hot(cast("Sequence[tuple[str, ...]]", rows.labels), rows.parts, config)
        return Task(config.name, names, "multi_label"), several, rarest(several)
    single = cast("Sequence[str]", rows.labels)
    _refuse_empty("label", single, rows.parts, config)
    if are_targets([label for label, part in zip(single, rows.parts, strict=True) if part == "train"]):
        return Task(config.name), targets(single, rows.parts, config.name), None
    names, numbers = class_numbers(single, rows.parts, config.name)
    return Task(config.name, names), torch.from_numpy(numbers), numbers


def class_numbers(labels: Sequence[str], parts: Sequence[Part], source: str) -> tuple[tuple[str, ...], Integers]:
    """Gives the class names of the training rows, in order, and the class number of each of N rows [N].

    Whole numbers are in the order of their values, words in the alphabet's.

    Raises:
        DataError: a validation or test label that no training row has, or fewer than two classes.
    """
    found = {label for label, part in zip(labels, parts, strict=True) if part == "train"}
    names = in_order(found)
    if len(names) < 2:
        raise DataError(f"{source}: the training rows have one label only ({', '.join(names)}); two or more are needed")
    number = {name: index for index, name in enumerate(names)}
    for row, label in enumerate(labels):
        if label not in number:
            known = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
            raise DataError(
                f"{source}: unknown label {label!r} in {_place(row, parts)}; the training rows have {known}: "
                f"correct the label, drop the row, or add training rows with this label"
            )
    return names, np.asarray([number[label] for label in labels], dtype=np.int64)


def targets(labels: Sequence[str], parts: Sequence[Part], source: str) -> torch.Tensor:
    """Gives the targets of N rows as [N] float32.

    Raises:
        DataError: a label that is no number, or not finite in float32.
    """
    values = []
    for row, label in enumerate(labels):
        try:
            values.append(float(label))
        except ValueError:
            raise DataError(
                f"{source}: label {label!r} in {_place(row, parts)} is no number, but the training rows' labels are"
            ) from None
    tensor = torch.tensor(values, dtype=torch.float64).to(torch.float32)
    for row in torch.where(~tensor.isfinite())[0].tolist():
        raise DataError(
            f"{source}: target {labels[row]!r} in {_place(row, parts)} "
            f"is not finite in float32; correct it or drop the row"
        )
    return tensor


def assemble(
    task: Task,
    modality: str,
    columns: Mapping[str, Sequence[str] | torch.Tensor],
    teacher: Sequence[str] | torch.Tensor,
    labels: torch.Tensor,
    division: Division,
) -> TaskData:
    """Cuts N rows into the three splits; a training row that is not labelled loses its label here."""

    def split(rows: Integers, labelled: torch.Tensor) -> Split:
        taken = {name: _take(column, rows) for name, column in columns.items()}
        own = _hidden(task, labels[torch.from_numpy(rows)], ~labelled)
        return Split(taken, _take(teacher, rows), own, labelled)

    return TaskData(
        task,
        modality,
        train=split(division.train, torch.from_numpy(division.labelled)),
        validation=split(division.validation, torch.ones(len(division.validation), dtype=torch.bool)),
        test=split(division.test, torch.ones(len(division.test), dtype=torch.bool)),
    )


def _hidden(task: Task, labels: torch.Tensor, unlabelled: torch.Tensor) -> torch.Tensor:
    """Labels without those of the unlabelled rows; of tokens it stays known which of them have one."""
    if task.level == "token":
        return labels.masked_fill(unlabelled[:, None] & (labels != IGNORED), HIDDEN_CLASS)
    hidden = math.nan if labels.is_floating_point() else HIDDEN_CLASS
    return labels.masked_fill(unlabelled.reshape(-1, *[1] * (labels.dim() - 1)), hidden)


def _take(column: Sequence[str] | torch.Tensor, rows: Integers) -> Sequence[str] | torch.Tensor:
    if isinstance(column, torch.Tensor):
        return column[torch.from_numpy(rows)]
    return [column[row] for row in rows.tolist()]


def _refuse_empty(kind: str, column: Sequence[str], parts: Sequence[Part], config: DataConfig) -> None:
    for row, value in enumerate(column):
        if not value.strip():
            raise DataError(f"{config.name}: empty {kind} in {_place(row, parts)}; fill it in or drop the row")


def are_targets(labels: Sequence[str]) -> bool:
    """Whether labels are numbers, one with a fraction at least."""
    return not all(map(_is_whole, labels)) and all(map(_is_number, labels))


def _is_whole(label: str) -> bool:
    digits = label.removeprefix("-")
    return digits.isascii() and digits.isdigit()


def _is_number(label: str) -> bool:
    try:
        float(label)
    except ValueError:
        return False
    return True


def _place(row: int, parts: Sequence[Part]) -> str:
    """Says where a row is: its number, from 1, in its part of the data set."""
    return f"row {parts[: row + 1].count(parts[row])} of the {parts[row]} part"
