"""The error between a student's state and what a committee answered, by importance; knows no teacher and no module."""

from __future__ import annotations

import torch
from torch.nn import functional

from student_client.losses.labels import of_independent
from teaching_protocol.errors import InvalidTensor

__all__ = ["committee_error", "mixed", "mixed_prediction", "mixed_targets"]


def committee_error(
    states: torch.Tensor, answers: torch.Tensor, importance: torch.Tensor, *, of_mixture: bool = False
) -> torch.Tensor:
    """sum_i alpha_i || H^g_u - z_i ||^2, mean over rows and features; or || H^g_u - sum_i alpha_i z_i ||^2.

    DiverseDistill (arXiv 2402.14035): the importance weighs each teacher's answer for each row. Which of the two forms
    is meant is not known; both are ours, and so are the mean over features and the LayerNorm without parameters on both
    sides, as in `interact`. What stands in an answer of importance 0 has no effect.

    Args:
        states: H^g_u [batch, d_g].
        answers: z [batch, teachers, d_g].
        importance: alpha [batch, teachers], rows of sum 1.
        of_mixture: compare with the mixture of the answers, not with each.

    Raises:
        InvalidTensor: shapes that do not fit.
    """
    _check(states, answers, importance)
    width = states.shape[-1:]
    wanted = functional.layer_norm(states, width)
    if of_mixture:
        return (wanted - functional.layer_norm(mixed(answers, importance), width)).square().mean()
    errors = (wanted[:, None] - functional.layer_norm(answers, width)).square().mean(-1)  # [batch, teachers]
    return (importance * errors).sum(1).mean()


def mixed(answers: torch.Tensor, importance: torch.Tensor) -> torch.Tensor:
    """sum_i alpha_i z_i: answers [batch, teachers, d_g] by importance [batch, teachers] to [batch, d_g]."""
    return (importance[..., None] * answers).sum(1)


def mixed_prediction(
    predictions: torch.Tensor, importance: torch.Tensor, *, temperature: float = 1.0, independent: bool = False
) -> torch.Tensor:
    """What a committee predicts, differentiable to the importance: log sum_i alpha_i softmax(y_i / T), or sum_i alpha_i y_i.

    Ours: the mixture of the teachers' own predictions by their importance for each row.

    Args:
        predictions: [batch, teachers, classes] logits, or [batch, teachers, 1] predicted targets; they get no gradient.
        importance: alpha [batch, teachers], rows of sum 1.
        temperature: of the softmaxes; a regression does not use it.
        independent: whether each class is true or not by itself, as in a multi-label task: sigmoids are mixed.

    Returns:
        [batch, classes] log-probabilities, which a task loss takes as logits; of independent classes the logits of the
        mixture; or [batch] predicted targets.

    Raises:
        InvalidTensor: shapes that do not fit.
    """
    if predictions.dim() != 3 or predictions.shape[:2] != importance.shape:
        raise InvalidTensor(
            f"committee: received predictions {list(predictions.shape)} and importance {list(importance.shape)}, "
            "expected [batch, teachers, outputs] and [batch, teachers]"
        )
    if predictions.shape[-1] == 1:
        return (importance * predictions.detach().squeeze(-1)).sum(1)
    shares = importance.clamp(min=torch.finfo(importance.dtype).tiny).log()[..., None]
    scaled = predictions.detach() / temperature
    if independent:
        true, false = ((shares + functional.logsigmoid(each)).logsumexp(1) for each in (scaled, -scaled))
        return true - false
    return (shares + scaled.log_softmax(-1)).logsumexp(1)


def mixed_targets(
    outputs: torch.Tensor, mixture: torch.Tensor, *, temperature: float = 2.0, independent: bool = False
) -> torch.Tensor:
    """T^2 KL(mixture || softmax(y / T)), or mean (y - mixture)^2; the mixture of `mixed_prediction` gets no gradient.

    Args:
        outputs: y [batch, classes] logits, or [batch] predicted targets.
        mixture: log-probabilities, or logits, at the same temperature, or predicted targets; the same shape.
        temperature: T; a regression does not use it.
        independent: as in `mixed_prediction`.

    Raises:
        InvalidTensor: the two differ in shape.
    """
    if outputs.shape != mixture.shape:
        raise InvalidTensor(
            f"outputs: received {list(outputs.shape)} against {list(mixture.shape)}, expected the same shape; "
            "the teachers must predict what the student does"
        )
    if outputs.dim() == 1:
        return functional.mse_loss(outputs, mixture.detach())
    scaled, target = outputs / temperature, mixture.detach()
    if independent:
        scaled, target = of_independent(scaled), of_independent(target).log_softmax(-1)
    return functional.kl_div(scaled.log_softmax(-1), target, reduction="batchmean", log_target=True) * temperature**2


def _check(states: torch.Tensor, answers: torch.Tensor, importance: torch.Tensor) -> None:
    rows, width = states.shape if states.dim() == 2 else (-1, -1)
    if answers.dim() != 3 or answers.shape[::2] != (rows, width) or importance.shape != answers.shape[:2]:
        raise InvalidTensor(
            f"committee: received states {list(states.shape)}, answers {list(answers.shape)} and importance "
            f"{list(importance.shape)}, expected [batch, width], [batch, teachers, width] and [batch, teachers]"
        )
