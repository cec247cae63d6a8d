"""What a data set is to the trainer: three splits and a task; knows no file and no student."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

__all__ = ["Split", "Task", "TaskData"]


@dataclass(frozen=True)
class Task:
    """What is to be predicted. `labels` names the classes in order; empty for a regression."""

    name: str
    labels: tuple[str, ...] = ()

    @property
    def is_regression(self) -> bool:
        """Whether the target is a number and not a class."""
        return not self.labels

    @property
    def outputs(self) -> int:
        """Width of the student's head."""
        return max(1, len(self.labels))

    @property
    def metric(self) -> str:
        """Name of the test metric: accuracy (higher is better) or rmse (lower is better)."""
        return "rmse" if self.is_regression else "accuracy"


@dataclass(frozen=True)
class Split:
    """One part of a data set, N examples.

    `columns` is the student's raw view (`text`: N strings; `user`, `item`: [N] int64;
    `image`: [N, channels, height, width] uint8) and `teacher` the teacher's view of the same examples:
    N strings, or the images. `labels` is [N] int64 classes or [N] float32 targets; a row whose
    `labelled` [N] bool is False keeps its label out of every loss.
    """

    columns: Mapping[str, Sequence[str] | torch.Tensor]
    teacher: Sequence[str] | torch.Tensor
    labels: torch.Tensor
    labelled: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class TaskData:
    """A data set ready to train on. Nothing in `train` was derived from the other two splits."""

    task: Task
    modality: str  # text | ratings | image
    train: Split
    validation: Split
    test: Split
