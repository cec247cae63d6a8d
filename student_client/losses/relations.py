"""Errors between relations, of rows to rows or of tokens to tokens; widths may differ, so nothing is projected."""

from __future__ import annotations

import torch
from torch.nn import functional

from student_client.losses.masks import mean_over_tokens, real
from teaching_protocol.errors import InvalidSetting, InvalidTensor

__all__ = ["angle_relation", "distance_relation", "self_relation_kl"]

_SMALLEST = 1e-12
_SAME = 1e-4


def distance_relation(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Huber error (delta 1) of the distances between rows, each side's over its mean distance; mean over pairs i != j.

    RKD, Park et al. 2019 (arXiv 1904.05068), its distance-wise loss; there it is a sum over pairs, the mean is ours.
    Up to two rows there is nothing to compare: 0, still connected. Between identical rows the gradient is 0.

    Args:
        student: [batch, d_g].
        teacher: [batch, d_h]; it gets no gradient.

    Raises:
        InvalidTensor: other than two [batch, width] of the same rows.
    """
    student, teacher = _rows(student, teacher)
    rows = len(student)
    if rows < 3:
        return student.sum() * 0.0
    ours, theirs = (_over_mean(_differences(each)[1]) for each in (student, teacher))
    return functional.smooth_l1_loss(ours, theirs, reduction="sum") / (rows * (rows - 1))


def angle_relation(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Huber error (delta 1) of cos(angle i j k) at row j; mean over triples of different rows.

    RKD, Park et al. 2019 (arXiv 1904.05068), its angle-wise loss; there it is a sum over triples, the mean is ours. Up
    to two rows there is no angle: 0, still connected. Rows nearer to each other than 1e-4 of the mean distance count as
    one (ours): there is no direction from one to the other, the cosine is 0 and without gradient.

    Args:
        student: [batch, d_g].
        teacher: [batch, d_h]; it gets no gradient.

    Raises:
        InvalidTensor: other than two [batch, width] of the same rows.
    """
    student, teacher = _rows(student, teacher)
    rows = len(student)
    if rows < 3:
        return student.sum() * 0.0
    ours, theirs = (_cosines(each) for each in (student, teacher))  # [batch, batch, batch]
    itself = torch.eye(rows, dtype=torch.bool, device=student.device)  # i = k; at i = j both cosines are 0
    errors = functional.smooth_l1_loss(ours, theirs, reduction="none").masked_fill(itself, 0.0)
    return errors.sum() / (rows * (rows - 1) * (rows - 2))


def self_relation_kl(
    student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor | None = None, *, heads: int = 1
) -> torch.Tensor:
    """KL(R(teacher) || R(student)), R(A) = softmax(A A^T / sqrt(d_r)) for each of `heads` relation heads.

    MiniLM's value relation, Wang et al. 2020 (arXiv 2002.10957), over relation heads of width d_r = width / heads as in
    MiniLMv2 (arXiv 2012.15828). Mean over heads and over real tokens.

    Args:
        student: A of the student [batch, tokens, d_g].
        teacher: A of the teacher [batch, tokens, d_h]; it gets no gradient.
        mask: [batch, tokens] bool; padding neither relates nor is related to. None takes every token as real.
        heads: relation heads; it divides both widths.

    Raises:
        InvalidTensor: other than two [batch, tokens, width] of the same tokens, or a mask that does not fit.
        InvalidSetting: heads that do not divide both widths.
    """
    _check_tokens(student, teacher, mask)
    widths = student.shape[-1], teacher.shape[-1]
    if heads < 1 or any(width % heads for width in widths):
        raise InvalidSetting(
            f"relation_heads: received {heads} for states of width {widths[0]} and {widths[1]}, expected a divisor of "
            "both; set another number of relation heads"
        )
    ours, theirs = (_log_relation(each, mask, heads) for each in (student, teacher.detach()))
    rows = functional.kl_div(ours, theirs, reduction="none", log_target=True).sum(-1)  # [batch, heads, tokens]
    return mean_over_tokens(rows.mean(1), mask)


def _differences(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """x_i - x_j [batch, batch, width] at [i, j], and their norms [batch, batch]."""
    difference = rows[:, None] - rows[None, :]
    return difference, torch.linalg.vector_norm(difference, dim=-1)


def _over_mean(distances: torch.Tensor) -> torch.Tensor:
    """Distances [batch, batch] over the mean of those with i != j."""
    mean = distances.sum() / (len(distances) * (len(distances) - 1))
    return distances / mean.clamp(min=_SMALLEST)


def _cosines(rows: torch.Tensor) -> torch.Tensor:
    """cos(angle i j k) at [j, i, k]; 0 where i or k is the same as j."""
    difference, distances = _differences(rows)
    same = _over_mean(distances.detach()) <= _SAME
    direction = difference / distances.masked_fill(same, 1.0)[..., None]
    direction = direction.masked_fill(same[..., None], 0.0).transpose(0, 1)  # [batch, batch, width], at [j, i]
    return direction @ direction.transpose(1, 2)


def _log_relation(states: torch.Tensor, mask: torch.Tensor | None, heads: int) -> torch.Tensor:
    """log R [batch, heads, tokens, tokens]; a row of it sums to one over the real tokens."""
    split = torch.unflatten(real(states, mask), -1, (heads, -1)).transpose(1, 2)  # [batch, heads, tokens, d_r]
    scores = split @ split.transpose(2, 3) / split.shape[-1] ** 0.5
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None, None, :], torch.finfo(scores.dtype).min)
    return functional.log_softmax(scores, dim=-1)


def _rows(student: torch.Tensor, teacher: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both checked and in float32 at least, the teacher's without gradient."""
    if student.dim() != 2 or teacher.dim() != 2 or len(student) != len(teacher):
        raise InvalidTensor(
            f"rows: received {list(student.shape)} and {list(teacher.shape)}, expected [batch, width] of the same rows; "
            "pool both to one vector a row"
        )
    ours, theirs = (each.to(torch.promote_types(each.dtype, torch.float32)) for each in (student, teacher.detach()))
    return ours, theirs


def _check_tokens(student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor | None) -> None:
    if student.dim() != 3 or teacher.dim() != 3 or student.shape[:2] != teacher.shape[:2]:
        raise InvalidTensor(
            f"states: received {list(student.shape)} and {list(teacher.shape)}, expected [batch, tokens, width] of the "
            "same tokens; pool both to the same number of segments"
        )
    if mask is not None and (mask.shape != student.shape[:2] or mask.dtype != torch.bool):
        raise InvalidTensor(
            f"mask: received {list(mask.shape)} of {mask.dtype}, expected {list(student.shape[:2])} of torch.bool; "
            "pass the mask that belongs to the states"
        )
