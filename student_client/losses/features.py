"""Errors between the student's and the teacher's feature vectors of the same rows; knows no model and no projection."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional

from teaching_protocol.errors import InvalidTensor

__all__ = ["hint_error", "patient_error"]

_EPS = 1e-6


def hint_error(student: torch.Tensor, teacher: torch.Tensor, *, normalise: bool = True) -> torch.Tensor:
    """|| LN(r(h_g)) - LN(h) ||^2, mean over features and rows; without `normalise`, of the raw vectors.

    FitNets, Romero et al. 2014 (arXiv 1412.6550) section 2.2, without its factor 1/2. The mean over features and the
    LayerNorm without parameters, which takes the teacher's scale out of the weight, are ours.

    Args:
        student: r(h_g) [batch, d_h], the student's vector through the regressor.
        teacher: h [batch, d_h], the hint; it gets no gradient.
        normalise: compare LayerNormed vectors.

    Raises:
        InvalidTensor: the two differ in shape, or are no [batch, width].
    """
    _check(student, teacher)
    teacher = teacher.detach()
    if normalise:
        student, teacher = (functional.layer_norm(each, each.shape[-1:]) for each in (student, teacher))
    return ((student - teacher) ** 2).mean()


def patient_error(students: Sequence[torch.Tensor], teachers: Sequence[torch.Tensor]) -> torch.Tensor:
    """|| s / |s| - t / |t| ||^2, mean over rows and over pairs of layers.

    PKD, Sun et al. 2019 (arXiv 1908.09355), its patient-teacher loss L_PT; there it is a sum over rows and layers, the
    mean is ours. It lies between 0 and 4. A vector of zeros stays one, and is at distance 1 from any other.

    Args:
        students: one [batch, width] a layer; widths may differ between layers.
        teachers: as many, of the same shapes; they get no gradient.

    Raises:
        InvalidTensor: no layer, another number of them, or two of a pair that differ in shape.
    """
    if not students or len(students) != len(teachers):
        raise InvalidTensor(
            f"layers: received {len(students)} of the student and {len(teachers)} of the teacher, expected the same "
            "number, 1 or more; pair each layer of the student with one of the teacher"
        )
    return torch.stack([_angle(*pair) for pair in zip(students, teachers, strict=True)]).mean()


def _angle(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    _check(student, teacher)
    ours, theirs = (functional.normalize(each, dim=-1, eps=_EPS) for each in (student, teacher.detach()))
    return ((ours - theirs) ** 2).sum(-1).mean()


def _check(student: torch.Tensor, teacher: torch.Tensor) -> None:
    if student.dim() != 2 or student.shape != teacher.shape:
        raise InvalidTensor(
            f"features: received {list(student.shape)} and {list(teacher.shape)}, expected the same [batch, width]; "
            "pool both to one vector a row, and project the student's to the teacher's width"
        )
