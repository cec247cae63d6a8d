"""What a data set is to the trainer: three splits and a task; knows no file and no student."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from task_data.config import Level

if TYPE_CHECKING:
    from task_data.streaming import RowStream

__all__ = ["IGNORED", "METRICS", "Split", "Task", "TaskData", "TaskKind"]

IGNORED = -100
"""The label of a token that has none, as in transformers: padding, a word's further pieces, the last of a text."""

TaskKind = Literal["single_label", "multi_label", "regression"]
"""What a row's label is: one of the classes, any number of them, or a number. The words are those of transformers."""


METRICS: dict[TaskKind, str] = {"single_label": "accuracy", "multi_label": "micro_f1", "regression": "rmse"}
"""The metric that chooses and tests a student of rows; `task_data.metrics` has it and what stands beside it."""


@dataclass(frozen=True)
class Task:
    """What is to be predicted. `labels` names the classes in order; without any it is a regression, whatever `kind` says, or
    about next tokens."""

    name: str
    labels: tuple[str, ...] = ()
    kind: TaskKind = "single_label"
    level: Level = "row"

    def __post_init__(self) -> None:
        if not self.labels and self.level == "row":
            object.__setattr__(self, "kind", "regression")

    @property
    def is_regression(self) -> bool:
        """Whether the target is a number and not a class."""
        return self.kind == "regression"

    @property
    def is_multi_label(self) -> bool:
        """Whether a row may have several of the classes, or none."""
        return self.kind == "multi_label"

    @property
    def has_spans(self) -> bool:
        """Whether the classes of tokens mark spans: B-x begins one, I-x goes on in it."""
        return self.level == "token" and any(label.startswith("B-") for label in self.labels)

    @property
    def outputs(self) -> int:
        """Width of the student's head."""
        return max(1, len(self.labels))

    @property
    def metric(self) -> str:
        """Name of the test metric: accuracy, micro_f1 or span_f1 (higher is better), rmse or perplexity (lower is better)."""
        if self.level == "next_token":
            return "perplexity"
        return "span_f1" if self.has_spans else METRICS[self.kind]


@dataclass(frozen=True)
class Split:
    """One part of a data set, N examples.

    `columns` is the student's raw view (`text`: N strings; `user`, `item`: [N] int64;
    `image`: [N, channels, height, width] uint8) and `teacher` the teacher's view of the same examples:
    N strings, or the images. `labels` is [N] int64 classes, [N, classes] float32 zeros and ones of a multi-label
    task, or [N] float32 targets; a row whose `labelled` [N] bool is False keeps its label out of every loss. At level
    `token` the words of a text stand between single spaces, and `labels` is [N, words] int64, `IGNORED` behind the last word. At
    level `next_token` the text is its own label, and `labels` is [N] of no meaning.
    """

    columns: Mapping[str, Sequence[str] | torch.Tensor]
    teacher: Sequence[str] | torch.Tensor
    labels: torch.Tensor
    labelled: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class TaskData:
    """A data set ready to train on. Nothing in `train` was derived from the other two splits.

    Where the training rows are read as they are needed, `stream` has them, and `train` is the first of them.
    """

    task: Task
    modality: str  # text | ratings | image
    train: Split
    validation: Split
    test: Split
    stream: RowStream | None = None
