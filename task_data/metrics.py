"""What outputs score against labels, by the kind of task: pure functions of tensors; knows no model and no split."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from task_data.splits import TaskKind

__all__ = ["measured"]


def measured(kind: TaskKind, outputs: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """Metrics by name, that of `Task.metric` first.

    A single label: accuracy, and macro_f1, the mean F1 of the classes that occur among labels or predictions. Several
    labels, of which those with a logit over 0 (a probability over a half) are predicted: micro_f1 over all pairs of row and
    class, 1 where nothing is there and nothing predicted; macro_f1; and subset_accuracy, the share of the rows whose
    labels are all right. A number: rmse.

    Args:
        kind: of the task.
        outputs: [rows, classes] logits or [rows] predicted targets.
        labels: as `Split.labels`; all rows are labelled.
    """
    return _MEASURES[kind](outputs, labels)


def _one_label(outputs: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    predicted, classes = outputs.argmax(-1), outputs.shape[-1]
    accuracy = (predicted == labels).double().mean().item()
    hits = torch.bincount(labels[predicted == labels], minlength=classes)
    named = torch.bincount(labels, minlength=classes) + torch.bincount(predicted, minlength=classes)
    return {"accuracy": accuracy, "macro_f1": _mean_f1(hits, named)}


def _several_labels(outputs: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    predicted, true = outputs > 0, labels > 0
    hits = (predicted & true).sum(0)  # [classes]
    named = predicted.sum(0) + true.sum(0)
    micro = float(2 * hits.sum() / named.sum()) if named.any() else 1.0
    exact = (predicted == true).all(-1).double().mean().item()
    return {"micro_f1": micro, "macro_f1": _mean_f1(hits, named), "subset_accuracy": exact}


def _number(outputs: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    return {"rmse": math.sqrt((outputs.double() - labels.double()).square().mean().item())}


def _mean_f1(hits: torch.Tensor, named: torch.Tensor) -> float:
    """Mean of 2 hits / named over the classes that are named at all; 1 where none is."""
    if not named.any():
        return 1.0
    return float((2 * hits[named > 0] / named[named > 0]).mean())


_MEASURES: dict[TaskKind, Callable[[torch.Tensor, torch.Tensor], dict[str, float]]] = {
    "single_label": _one_label,
    "multi_label": _several_labels,
    "regression": _number,
}
