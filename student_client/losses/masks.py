"""Means over real tokens only; knows no loss and no model."""

from __future__ import annotations

import torch

__all__ = ["mean_over_tokens", "pooled", "real"]


def real(states: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """States [batch, tokens, width] with zeros where `mask` [batch, tokens] bool is False; no mask: as they are."""
    return states if mask is None else states.masked_fill(~mask[..., None], 0.0)


def mean_over_tokens(values: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Mean of [batch, tokens] values over all real tokens of the batch; 0, still connected, where there is none."""
    if mask is None:
        return values.mean()
    return values.masked_fill(~mask, 0.0).sum() / mask.sum().clamp(min=1)


def pooled(states: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Mean of each row's real tokens: [batch, tokens, width] -> [batch, width]; zeros for a row without any."""
    if mask is None:
        return states.mean(1)
    return real(states, mask).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
