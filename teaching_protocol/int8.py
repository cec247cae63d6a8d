"""Float tensors as rows of int8, each row of the last dimension with a scale of its own; knows no wire.

The scale of a row is its largest absolute value / 127 (absmax quantization, as in LLM.int8(), Dettmers et al. 2022, section 2.1). A
row with an outlier loses its small values, so the error of every tensor is measured, and one beyond the limit does not go this way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

__all__ = ["Int8Rules", "from_rows", "to_rows"]

_LEVELS = 127
_SHORTEST_ROW = 16  # shorter ones save nothing over bf16, with four bytes of scale each


def _nobody(error: float, is_kept: bool) -> None:
    """Hears of nothing."""


@dataclass(frozen=True)
class Int8Rules:
    """When a tensor may travel as int8, and who hears of it.

    Attributes:
        error_limit: largest relative error of a tensor: the sum of |what arrives - what is sent| over the sum of |what is sent|.
            Normally distributed rows of 384 have 0.008, bf16 has 0.002.
        report: is told the error of each tensor tried, and whether it travels as int8.
    """

    error_limit: float = 0.02
    report: Callable[[float, bool], None] = _nobody

    def rows(self, tensor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
        """The rows and scales of a float tensor; None if it has to travel otherwise."""
        if tensor.dim() < 2 or tensor.shape[-1] < _SHORTEST_ROW or not tensor.numel():
            return None
        rows, scales, error = to_rows(tensor)
        is_kept = error <= self.error_limit  # false of NaN
        self.report(error, is_kept)
        return (rows, scales) if is_kept else None


def to_rows(tensor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Compresses a float tensor [..., n].

    Returns:
        int8 of the same shape, float32 scales [rows], and the relative error: NaN if any number is NaN or infinite.
    """
    exact = tensor.detach().to(torch.float32).reshape(-1, tensor.shape[-1])  # [rows, n]
    size = exact.abs()
    scales = size.amax(-1) / _LEVELS
    divisors = torch.where(scales > 0, scales, 1.0)
    rounded = (exact / divisors[:, None]).round_().clamp_(-_LEVELS, _LEVELS)
    total = float(size.sum())
    missed = float(torch.addcmul(exact, rounded, scales[:, None], value=-1.0).abs_().sum())
    error = missed / total if total else missed
    return rounded.to(torch.int8).reshape(tensor.shape), scales, error


def from_rows(rows: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Gives the float32 tensor that int8 [..., n] and the scales of its rows stand for, in memory of its own."""
    return (rows.reshape(len(scales), -1) * scales[:, None]).reshape(rows.shape)
