"""How good a student is on a split, alone: no teacher, no codec and no method is known here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from student_client.config import load_run_config, run_file
from student_client.losses import task_loss
from student_models import Student, Tensors, load_student
from student_models.token_labels import labelled_view
from task_data import IGNORED, TOKEN_LABELS, Split, batches, load_data
from task_data.config import SplitName
from task_data.metrics import measured
from task_data.token_scores import TokenCounts
from teaching_protocol.errors import DataError

__all__ = ["Scores", "SplitName", "evaluate", "evaluate_run", "labelled_outputs"]

_TOKENS_AT_ONCE = 2048
"""Most tokens of a batch that is scored: each has as many logits as there are classes, or tokens of a vocabulary."""


@dataclass(frozen=True)
class Scores:
    """What a student scored on the labelled rows of a split.

    `value` is that of `metric`: accuracy, micro_f1 or span_f1 (higher is better), rmse or perplexity (lower is better).
    `macro_f1` is the mean F1 of the classes that occur among labels or predictions; None where there are none.
    `subset_accuracy` is the share of the rows whose labels are all right, of a multi-label task only. `accuracy` is that of
    tokens, and None where rows have labels: it is the metric there, or has no meaning. `rows` counts tokens where they have labels.
    """

    metric: str
    value: float
    loss: float
    rows: int
    macro_f1: float | None = None
    subset_accuracy: float | None = None
    accuracy: float | None = None

    def better_than(self, value: float | None) -> bool:
        """Whether this beats an earlier value of the same metric; anything beats None."""
        if value is None:
            return True
        return self.value < value if self.metric in ("rmse", "perplexity") else self.value > value

    def as_dict(self) -> dict[str, float]:
        """{metric: value, "loss": ..., "macro_f1": ...} without what does not apply."""
        further = {"macro_f1": self.macro_f1, "subset_accuracy": self.subset_accuracy, "accuracy": self.accuracy}
        known = {name: value for name, value in further.items() if value is not None}
        return {self.metric: self.value, "loss": self.loss} | known


def evaluate(student: Student, view: Tensors, split: Split, batch_size: int = 128) -> Scores:
    """Scores a student in evaluation mode and without gradients; its mode is restored.

    Args:
        student: on any device.
        view: its input tensors for the N examples (`labelled_view(student, split)`; `student.view(split.columns)` will do).
        split: the N examples; unlabelled rows are left out.
        batch_size: examples at once.

    Raises:
        DataError: no row has a label.
    """
    if student.task.level != "row":
        return _of_tokens(student, view if TOKEN_LABELS in view else labelled_view(student, split), split, batch_size)
    outputs, labels = labelled_outputs(student, view, split, batch_size)
    loss = task_loss(outputs, labels, torch.ones(len(labels), dtype=torch.bool)).item()
    found = measured(student.task.kind, outputs, labels)
    metric = student.task.metric
    return Scores(metric, found.pop(metric), loss, len(labels), **found)


def evaluate_run(folder: Path, split: SplitName = "test", batch_size: int = 128) -> Scores:
    """Scores the best student of a run, loaded alone, on a split of the run's data.

    Raises:
        ConfigError: it is the folder of no run.
        ModelLoadError: it holds no student.
        DataError: the data cannot be had.
    """
    config = load_run_config(run_file(folder), {})
    student = load_student(folder / "student")
    rows: Split = getattr(load_data(config.data), split)
    return evaluate(student, student.view(rows.columns), rows, batch_size)


def _of_tokens(student: Student, view: Tensors, split: Split, batch_size: int) -> Scores:
    counts, device = TokenCounts(student.task), next(student.parameters()).device
    most = max(1, _TOKENS_AT_ONCE // view[TOKEN_LABELS].shape[1])
    with _evaluating(student):
        for batch in batches(view, {}, split, min(batch_size, most), seed=0, epoch=0):
            labels = batch.labels.masked_fill(~batch.labelled[:, None], IGNORED).to(device)
            counts.add(student(_placed(batch.inputs, device)), labels)
    if not counts.tokens:
        raise DataError(f"none of the tokens of {len(split)} rows has a label; evaluate on a split with labels")
    found = {"span_f1": counts.span_f1, "perplexity": counts.perplexity, "accuracy": counts.accuracy}
    value = found[student.task.metric]
    assert value is not None, "a task whose metric it is has spans"
    return Scores(student.task.metric, value, counts.loss, counts.tokens, counts.macro_f1, accuracy=counts.accuracy)


def labelled_outputs(
    student: Student, view: Tensors, split: Split, batch_size: int = 128
) -> tuple[torch.Tensor, torch.Tensor]:
    """Float64 outputs [rows, classes] or [rows], and the labels as in `Split`, of the labelled rows on the CPU.

    Evaluation mode and no gradients; arguments and errors as of `evaluate`.
    """
    if not split.labelled.any():
        raise DataError(f"none of the {len(split)} rows has a label; evaluate on a split with labels")
    device = next(student.parameters()).device
    outputs, labels = [], []
    with _evaluating(student):
        for batch in batches(view, {}, split, batch_size, seed=0, epoch=0):
            found = student(_placed(batch.inputs, device)).double().cpu()
            outputs.append(found[batch.labelled])
            labels.append(batch.labels[batch.labelled])
    return torch.cat(outputs), torch.cat(labels)


def _placed(inputs: Mapping[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    return {name: tensor.to(device) for name, tensor in inputs.items()}


@contextmanager
def _evaluating(student: Student) -> Iterator[None]:
    training = student.training
    student.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        student.train(training)
