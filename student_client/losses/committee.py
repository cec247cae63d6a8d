"""The error between a student's state and what a committee answered, by importance; knows no teacher and no module."""

from __future__ import annotations

import torch
from torch.nn import functional

from teaching_protocol.errors import InvalidTensor

__all__ = ["committee_error", "mixed"]


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


def _check(states: torch.Tensor, answers: torch.Tensor, importance: torch.Tensor) -> None:
    rows, width = states.shape if states.dim() == 2 else (-1, -1)
    if answers.dim() != 3 or answers.shape[::2] != (rows, width) or importance.shape != answers.shape[:2]:
        raise InvalidTensor(
            f"committee: received states {list(states.shape)}, answers {list(answers.shape)} and importance "
            f"{list(importance.shape)}, expected [batch, width], [batch, teachers, width] and [batch, teachers]"
        )
