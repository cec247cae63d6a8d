"""Means over the real tokens of hidden states: of all of them, or of even segments; knows no model."""

from __future__ import annotations

import torch

from teaching_protocol.errors import InvalidTensor

__all__ = ["masked_mean", "segment_means", "segments"]


def masked_mean(states: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Mean of [batch, tokens, width] over the tokens that `mask` [batch, tokens] calls real: [batch, width].

    Summed in float32, given in the states' own dtype.

    Raises:
        InvalidTensor: a mask of another shape.
    """
    if mask is None:
        return states.mean(dim=1)
    if mask.shape != states.shape[:2]:
        raise InvalidTensor(
            f"mask is {list(mask.shape)}, expected {list(states.shape[:2])}; send one mask value a token"
        )
    weights = mask.to(states.device, torch.float32).unsqueeze(-1)  # [batch, tokens, 1]
    mean = (states.float() * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1.0)
    return mean.to(states.dtype)


def segment_means(states: torch.Tensor, mask: torch.Tensor, count: int) -> torch.Tensor:
    """Means of `count` even segments of each row's real tokens: [batch, tokens, width] -> [batch, count, width].

    Summed in float32, given in the states' own dtype.
    """
    return (segments(mask, count) @ states.float()).to(states.dtype)


def segments(mask: torch.Tensor, count: int) -> torch.Tensor:
    """Weights [batch, count, tokens] of mean pooling; `mask` is [batch, tokens] bool.

    Segment j takes the real tokens from floor(j n / count) to ceil((j + 1) n / count), never none.
    """
    lengths = mask.sum(1)[:, None, None]  # [batch, 1, 1]
    rank = (mask.cumsum(1) - 1)[:, None, :]
    j = torch.arange(count, device=mask.device)[None, :, None]
    inside = (rank >= j * lengths // count) & (rank < ((j + 1) * lengths + count - 1) // count)
    member = (inside & mask[:, None, :]).float()  # [batch, count, tokens]
    return member / member.sum(-1, keepdim=True).clamp_min(1)
