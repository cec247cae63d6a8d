"""Losses on what another predictor says about the same rows; knows no model and no label."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch.nn import functional

from teaching_protocol.errors import InvalidSetting, InvalidTensor

__all__ = ["answer_labels", "averaged_soft_targets", "of_independent", "soft_label_kl", "soft_targets"]


def soft_label_kl(logits: torch.Tensor, teacher_logits: torch.Tensor, *, temperature: float = 2.0) -> torch.Tensor:
    """T^2 KL(softmax(teacher / T) || softmax(student / T)), mean over rows.

    Hinton et al. 2015 (arXiv 1503.02531) section 2; T^2 keeps the gradient's size when T changes.

    Args:
        logits: the student's [batch, classes].
        teacher_logits: the teacher's [batch, classes]; it gets no gradient.
        temperature: T, positive.

    Raises:
        InvalidTensor: the two differ in shape (other label spaces cannot be compared).
        InvalidSetting: a temperature that is not positive.
    """
    _check(logits, teacher_logits)
    _check_temperature(temperature)
    target = functional.log_softmax(teacher_logits.detach() / temperature, dim=-1)
    ours = functional.log_softmax(logits / temperature, dim=-1)
    return functional.kl_div(ours, target, reduction="batchmean", log_target=True) * temperature**2


def of_independent(logits: torch.Tensor) -> torch.Tensor:
    """Logits of independent classes [batch, classes] as those of yes against no, a row each: [batch * classes, 2].

    softmax(y, 0) is sigmoid(y), so what compares softmaxes compares sigmoids, and a mean over rows is one over rows and
    classes, as in `masked_binary_cross_entropy`.
    """
    return torch.stack([logits, torch.zeros_like(logits)], dim=-1).flatten(0, -2)


def soft_targets(
    outputs: torch.Tensor, teacher_outputs: torch.Tensor, *, temperature: float = 2.0, independent: bool = False
) -> torch.Tensor:
    """What the teacher predicts as a target: `soft_label_kl` for classes, mean (y - y_h)^2 for predicted targets.

    Hinton et al. 2015 (arXiv 1503.02531) for classes; the squared error for a regression is ours, and so is the same
    divergence of sigmoids, class by class, for a multi-label task.

    Args:
        outputs: y [batch, classes] logits, or [batch] predicted targets.
        teacher_outputs: the teacher's logits [batch, classes], or its prediction [batch, 1]; no gradient goes there.
        temperature: of both softmaxes; a regression does not use it.
        independent: whether each class is true or not by itself, as in a multi-label task.

    Raises:
        InvalidTensor: the two do not predict the same.
        InvalidSetting: a temperature that is not positive.
    """
    if outputs.dim() == 1:
        return functional.mse_loss(outputs, _prediction(outputs, teacher_outputs))
    _check(outputs, teacher_outputs)
    if independent:
        outputs, teacher_outputs = of_independent(outputs), of_independent(teacher_outputs)
    return soft_label_kl(outputs, teacher_outputs, temperature=temperature)


def averaged_soft_targets(
    outputs: torch.Tensor,
    teacher_outputs: Sequence[torch.Tensor],
    *,
    temperature: float = 2.0,
    independent: bool = False,
) -> torch.Tensor:
    """T^2 KL(mean_i softmax(y_i / T) || softmax(y / T)) over teachers i; a regression: mean (y - mean_i y_i)^2.

    The naive teaching by several: every teacher counts the same (ours; Hinton et al. 2015, arXiv 1503.02531, for an
    ensemble's mean probabilities as a target).

    Args:
        outputs: y [batch, classes] logits, or [batch] predicted targets.
        teacher_outputs: each as in `soft_targets`; no gradient goes there.
        temperature: of all softmaxes; a regression does not use it.
        independent: as in `soft_targets`.

    Raises:
        InvalidTensor: no teacher, or one that does not predict the same.
        InvalidSetting: a temperature that is not positive.
    """
    if not teacher_outputs:
        raise InvalidTensor("teacher_outputs: received none, expected those of one teacher or more; leave the term out")
    if outputs.dim() == 1:
        predictions = torch.stack([_prediction(outputs, each) for each in teacher_outputs])
        return functional.mse_loss(outputs, predictions.mean(0))
    _check_temperature(temperature)
    for each in teacher_outputs:
        _check(outputs, each)
    if independent:
        outputs, teacher_outputs = of_independent(outputs), [of_independent(each) for each in teacher_outputs]
    softened = torch.stack([(each.detach() / temperature).log_softmax(-1) for each in teacher_outputs])
    target = softened.logsumexp(0) - math.log(len(softened))  # [batch, classes]
    ours = (outputs / temperature).log_softmax(-1)
    return functional.kl_div(ours, target, reduction="batchmean", log_target=True) * temperature**2


def answer_labels(
    outputs: torch.Tensor, answer_outputs: torch.Tensor, *, temperature: float = 1.0, independent: bool = False
) -> torch.Tensor:
    """KL(detach(y_A) || y) on all rows, y_A = g_out(A) what the student's head makes of the answer.

    For predicted targets [batch] instead of logits: mean (y - detach(y_A))^2. Ours: it needs no
    teacher head and no shared label space.

    Args:
        outputs: y [batch, classes] logits or [batch] predicted targets.
        answer_outputs: y_A, the same shape; it gets no gradient.
        temperature: of both softmaxes, with the factor T^2 of `soft_label_kl`; a regression does not use it.
        independent: as in `soft_targets`.

    Raises:
        InvalidTensor: the two differ in shape.
        InvalidSetting: a temperature that is not positive.
    """
    _check(outputs, answer_outputs)
    if outputs.dim() == 1:
        return functional.mse_loss(outputs, answer_outputs.detach())
    return soft_targets(outputs, answer_outputs, temperature=temperature, independent=independent)


def _prediction(outputs: torch.Tensor, teacher_outputs: torch.Tensor) -> torch.Tensor:
    """A regression teacher's [batch, 1] as [batch]."""
    prediction = teacher_outputs.detach().squeeze(-1) if teacher_outputs.dim() == 2 else teacher_outputs.detach()
    _check(outputs, prediction)
    return prediction


def _check_temperature(temperature: float) -> None:
    if temperature <= 0:
        raise InvalidSetting(f"temperature: received {temperature}, expected more than 0; 2 is the default")


def _check(outputs: torch.Tensor, target: torch.Tensor) -> None:
    if outputs.shape != target.shape:
        raise InvalidTensor(
            f"outputs: received {list(outputs.shape)} against {list(target.shape)}, expected the same shape; "
            "the two must predict the same labels for the same rows"
        )
