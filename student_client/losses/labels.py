"""Losses on what another predictor says about the same rows; knows no model and no label."""

from __future__ import annotations

import torch
from torch.nn import functional

from teaching_protocol.errors import InvalidSetting, InvalidTensor

__all__ = ["answer_labels", "soft_label_kl"]


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
    if temperature <= 0:
        raise InvalidSetting(f"temperature: received {temperature}, expected more than 0; 2 is the default")
    target = functional.log_softmax(teacher_logits.detach() / temperature, dim=-1)
    ours = functional.log_softmax(logits / temperature, dim=-1)
    return functional.kl_div(ours, target, reduction="batchmean", log_target=True) * temperature**2


def answer_labels(outputs: torch.Tensor, answer_outputs: torch.Tensor, *, temperature: float = 1.0) -> torch.Tensor:
    """KL(detach(y_A) || y) on all rows, y_A = g_out(A) what the student's head makes of the answer.

    For predicted targets [batch] instead of logits: mean (y - detach(y_A))^2. Ours: it needs no
    teacher head and no shared label space.

    Args:
        outputs: y [batch, classes] logits or [batch] predicted targets.
        answer_outputs: y_A, the same shape; it gets no gradient.
        temperature: of both softmaxes, with the factor T^2 of `soft_label_kl`; a regression does not use it.

    Raises:
        InvalidTensor: the two differ in shape.
        InvalidSetting: a temperature that is not positive.
    """
    _check(outputs, answer_outputs)
    if outputs.dim() == 1:
        return functional.mse_loss(outputs, answer_outputs.detach())
    return soft_label_kl(outputs, answer_outputs, temperature=temperature)


def _check(outputs: torch.Tensor, target: torch.Tensor) -> None:
    if outputs.shape != target.shape:
        raise InvalidTensor(
            f"outputs: received {list(outputs.shape)} against {list(target.shape)}, expected the same shape; "
            "the two must predict the same labels for the same rows"
        )
