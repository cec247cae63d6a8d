"""The flow from one layer to another as a matrix, and the error between two such; knows no model and no projection."""

from __future__ import annotations

import torch
from torch.nn import functional

from student_client.losses.masks import real
from teaching_protocol.errors import InvalidTensor

__all__ = ["flow_error", "flow_matrix"]

Pair = tuple[torch.Tensor, torch.Tensor]


def flow_matrix(first: torch.Tensor, second: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """G_{a,b} = (1 / len) H_a^T H_b over each row's real tokens: [batch, d_a, d_b]; zeros for a row without any.

    FSP, Yim et al. 2017 ("A gift from knowledge distillation", CVPR), over tokens in place of pixels.

    Args:
        first: H_a [batch, tokens, d_a].
        second: H_b [batch, tokens, d_b].
        mask: [batch, tokens] bool; None takes every token as real.

    Raises:
        InvalidTensor: states of different tokens, or a mask that does not fit.
    """
    _check(first, second, mask)
    flow = real(first, mask).transpose(1, 2) @ real(second, mask)
    if mask is None:
        return flow / first.shape[1]
    return flow / mask.sum(1).clamp(min=1)[:, None, None]


def flow_error(
    student: Pair,
    teacher: Pair,
    mask: torch.Tensor | None = None,
    teacher_mask: torch.Tensor | None = None,
    *,
    normalise: bool = True,
) -> torch.Tensor:
    """Mean squared difference of the two sides' flow matrices, over rows and entries.

    RelK of knowledge selection (arXiv 2302.00444). Tokens need not agree between the sides, widths must. The LayerNorm
    without parameters on every state, which takes scales out of it and keeps learned projections from shrinking, is
    ours; so is the mean over entries.

    Args:
        student: H_a [batch, tokens, d_a] and H_b [batch, tokens, d_b].
        teacher: likewise, of tokens of its own, projected to the student's widths; gradients flow into it.
        mask: [batch, tokens] bool of the student's tokens.
        teacher_mask: of the teacher's.
        normalise: LayerNorm the states first.

    Raises:
        InvalidTensor: states, masks or widths that do not fit.
    """
    if normalise:
        student, teacher = _normalised(student), _normalised(teacher)
    ours, theirs = flow_matrix(*student, mask), flow_matrix(*teacher, teacher_mask)
    if ours.shape != theirs.shape:
        raise InvalidTensor(
            f"flow matrices: received {list(ours.shape)} and {list(theirs.shape)}, expected the same [batch, d_a, d_b]; "
            "project the teacher's states to the student's width"
        )
    return functional.mse_loss(ours, theirs)


def _normalised(pair: Pair) -> Pair:
    first, second = (functional.layer_norm(each, each.shape[-1:]) for each in pair)
    return first, second


def _check(first: torch.Tensor, second: torch.Tensor, mask: torch.Tensor | None) -> None:
    if first.dim() != 3 or second.dim() != 3 or first.shape[:2] != second.shape[:2]:
        raise InvalidTensor(
            f"states: received {list(first.shape)} and {list(second.shape)}, expected [batch, tokens, width] of the same "
            "tokens at two layers"
        )
    if mask is not None and (mask.shape != first.shape[:2] or mask.dtype != torch.bool):
        raise InvalidTensor(
            f"mask: received {list(mask.shape)} of {mask.dtype}, expected {list(first.shape[:2])} of torch.bool; "
            "pass the mask that belongs to the states"
        )
