"""Task losses over the labelled rows of a batch; knows no model."""

from __future__ import annotations

import torch
from torch.nn import functional

from student_client.losses.tokens import token_cross_entropy

__all__ = [
    "calibrated_cross_entropy",
    "masked_binary_cross_entropy",
    "masked_cross_entropy",
    "masked_mse",
    "task_loss",
]

_SHARPNESS = torch.cat([torch.zeros(1, dtype=torch.float64), torch.logspace(-3, 2, 201, dtype=torch.float64)])
"""1 / T of the calibrated cross-entropy."""


def masked_cross_entropy(logits: torch.Tensor, labels: torch.Tensor, labelled: torch.Tensor) -> torch.Tensor:
    """Cross-entropy, mean over the labelled rows.

    L = -(1 / n) sum_{b labelled} log softmax(y_b)[label_b], n the labelled rows; exactly 0, still connected
    to the logits, where n = 0. What stands in an unlabelled row's label is never read.

    Args:
        logits: y [batch, classes].
        labels: [batch] int64.
        labelled: [batch] bool.
    """
    rows = functional.cross_entropy(logits, labels.masked_fill(~labelled, 0), reduction="none")
    return _labelled_mean(rows, labelled)


def masked_mse(predictions: torch.Tensor, targets: torch.Tensor, labelled: torch.Tensor) -> torch.Tensor:
    """Squared error, mean over the labelled rows; exactly 0, still connected, where there is none.

    Args:
        predictions: y [batch].
        targets: [batch] float.
        labelled: [batch] bool.
    """
    rows = (predictions - targets.masked_fill(~labelled, 0.0).to(predictions.dtype)) ** 2
    return _labelled_mean(rows, labelled)


def masked_binary_cross_entropy(logits: torch.Tensor, targets: torch.Tensor, labelled: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy of independent classes, mean over classes and labelled rows; exactly 0 where there is none.

    L = -(1 / n c) sum_{b labelled} sum_k t log sigmoid(y) + (1 - t) log sigmoid(-y), as transformers has it for a
    multi-label task.

    Args:
        logits: y [batch, classes].
        targets: t [batch, classes] float, 0 to 1.
        labelled: [batch] bool.
    """
    wanted = targets.masked_fill(~labelled[:, None], 0.0).to(logits.dtype)
    rows = functional.binary_cross_entropy_with_logits(logits, wanted, reduction="none").mean(-1)
    return _labelled_mean(rows, labelled)


def task_loss(outputs: torch.Tensor, labels: torch.Tensor, labelled: torch.Tensor) -> torch.Tensor:
    """L_task by outputs and labels: the squared error of predicted targets [batch], else of logits [batch, classes] the
    binary cross-entropy where labels are [batch, classes] of zeros and ones, the cross-entropy where they are classes [batch].

    Logits [batch, tokens, classes] are of tokens, with labels [batch, tokens].
    """
    if outputs.dim() == 3:
        return token_cross_entropy(outputs, labels, labelled)
    if outputs.dim() == 1:
        return masked_mse(outputs, labels, labelled)
    loss = masked_binary_cross_entropy if labels.is_floating_point() else masked_cross_entropy
    return loss(outputs, labels, labelled)


def calibrated_cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """min over T of mean -log softmax(logits / T)[label], a scalar: what the logits tell, however sure they sound.

    T is the one temperature of Guo et al. 2017 (arXiv 1706.04599), taken from a grid from 0.01 to infinity. Ours: with
    few labels a student soon is too sure, and its plain cross-entropy rises above that of a student that has learned
    nothing, while its accuracy still rises; a selector would be rewarded for keeping it from learning.

    Args:
        logits: [rows, classes], float64.
        labels: classes [rows].
    """
    scaled = logits[None] * _SHARPNESS[:, None, None]
    losses = functional.cross_entropy(scaled.flatten(0, 1), labels.repeat(len(_SHARPNESS)), reduction="none")
    return losses.view(len(_SHARPNESS), -1).mean(1).min()


def _labelled_mean(rows: torch.Tensor, labelled: torch.Tensor) -> torch.Tensor:
    return rows.masked_fill(~labelled, 0.0).sum() / labelled.sum().clamp(min=1)
