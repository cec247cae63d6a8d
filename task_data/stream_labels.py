"""The labels of rows that are never all in memory: the task from some of them, and then each block's; reads no file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch

from task_data.assembly import HIDDEN_CLASS, are_targets
from task_data.config import DataConfig
from task_data.multi_label import are_several, in_order
from task_data.splits import Task
from teaching_protocol.errors import DataError

__all__ = ["encoded", "task_of"]

_SHOWN = 20


def task_of(labels: Sequence[Any], config: DataConfig) -> Task:
    """The task that the labels of some rows tell; classes that `config` names are those of all rows.

    Raises:
        DataError: fewer than two classes.
    """
    several = are_several(labels, config.name)
    named = config.classes or config.label_columns
    if several:
        names = named or in_order({name for each in labels for name in each})
    else:
        known = [label for label in labels if label]
        if named is None and are_targets(known):
            return Task(config.name)
        names = named or in_order(set(known))
    if labels and len(names) < 2:
        raise DataError(
            f"{config.name}: {len(names)} classes are known, two or more are needed; name them in data.classes"
        )
    return Task(config.name, names, "multi_label" if several else "single_label")


def encoded(task: Task, labels: Sequence[Any], source: object) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels as `Split.labels` has them, and which rows have one: `labelled` [N] bool.

    Raises:
        DataError: a label that is none of the task's.
    """
    if task.is_multi_label:
        return _several(task, cast("Sequence[tuple[str, ...]]", labels), source)
    labelled = torch.tensor([bool(label) for label in labels], dtype=torch.bool)
    if task.is_regression:
        values = [_number(label, source) if label else torch.nan for label in labels]
        return torch.tensor(values, dtype=torch.float32), labelled
    place = {name: number for number, name in enumerate(task.labels)} | {"": HIDDEN_CLASS}
    numbers = [place[label] if label in place else _unknown(task, label, source) for label in labels]
    return torch.tensor(numbers, dtype=torch.int64), labelled


def _several(task: Task, labels: Sequence[tuple[str, ...]], source: object) -> tuple[torch.Tensor, torch.Tensor]:
    place = {name: number for number, name in enumerate(task.labels)}
    found = torch.zeros(len(labels), len(place))
    for row, own in enumerate(labels):
        for name in own:
            found[row, place[name] if name in place else _unknown(task, name, source)] = 1.0
    return found, torch.ones(len(labels), dtype=torch.bool)


def _number(label: str, source: object) -> float:
    try:
        value = float(label)
    except ValueError:
        value = torch.nan
    if value - value != 0:
        raise DataError(f"{source}: label {label!r} is no finite number, but those of the validation rows are")
    return value


def _unknown(task: Task, label: str, source: object) -> int:
    known = ", ".join(task.labels[:_SHOWN]) + (", ..." if len(task.labels) > _SHOWN else "")
    raise DataError(
        f"{source}: unknown label {label!r}; known from the validation and test rows and the first training ones are {known}: "
        "name all classes in data.classes, or correct the label"
    )
