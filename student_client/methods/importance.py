"""How much each teacher counts for each row, and who is asked about it; pure, knows no teacher and no message."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch

__all__ = ["Importance", "importance"]


@dataclass(frozen=True)
class Importance:
    """Of n teachers for B rows; columns of teachers that are not there are 0.

    Attributes:
        learned: alpha [B, n], before any teacher is dropped; rows of sum 1.
        kept: [B, n] bool, which teacher is asked about which row.
        weights: alpha over those kept [B, n]; rows of sum 1.
    """

    learned: torch.Tensor
    kept: torch.Tensor
    weights: torch.Tensor


def importance(scores: torch.Tensor, present: Collection[int], tau: float = 0.0) -> Importance:
    """alpha = softmax(s) over the teachers that are there; those with alpha < tau are dropped, the rest renormalised.

    DiverseDistill (arXiv 2402.14035) weighs teachers for each sample by softmax, and drops those that matter little;
    the rule by a threshold is ours. The weightiest teacher of a row is kept whatever tau is.

    Args:
        scores: s [B, n].
        present: places of the teachers that can be asked, one at least.
        tau: 0 drops nobody.
    """
    away = torch.tensor([place not in present for place in range(scores.shape[1])], device=scores.device)
    learned = scores.masked_fill(away, float("-inf")).softmax(-1)
    kept = (~away).expand_as(learned)
    if tau <= 0:
        return Importance(learned, kept, learned)
    weightiest = torch.zeros_like(kept).scatter(1, learned.argmax(1, keepdim=True), True)
    kept = kept & ((learned >= tau) | weightiest)
    weights = learned.masked_fill(~kept, 0.0)
    return Importance(learned, kept, weights / weights.sum(1, keepdim=True))
