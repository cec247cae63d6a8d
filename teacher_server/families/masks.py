"""Attention masks of the transformers families, without asking the device what a mask holds; knows no model."""

from __future__ import annotations

from typing import Any

import torch
from transformers.masking_utils import (
    create_bidirectional_mask,
    create_causal_mask,
    create_sliding_window_causal_mask,
)

__all__ = ["added_mask", "attention_mask", "hides_tokens", "written_mask"]


def attention_mask(
    config: Any, states: torch.Tensor, mask: torch.Tensor | None, causal: bool, window: int | None = None
) -> Any:
    """What a block takes as its attention mask, as the model's own forward builds it.

    Transformers leaves a mask away that hides nothing, and reads it to know: on a CUDA device the engine would wait
    there. So there a mask is written out as it is; whoever knows that all tokens are real gives None.

    Args:
        config: of the model; says which attention is used.
        states: [batch, tokens, width], what enters the block.
        mask: [batch, tokens], true on real tokens, or None where all are.
        causal: whether a token sees only those before it.
        window: of those, how many; None for all.
    """
    if mask is not None and mask.is_cuda and config._attn_implementation in ("eager", "sdpa"):
        seen = written_mask(mask, causal, window)
        return seen if config._attn_implementation == "sdpa" else added_mask(seen, states.dtype)
    if not causal:
        return create_bidirectional_mask(config, states, mask)
    if window is not None:
        return create_sliding_window_causal_mask(config, states, mask, past_key_values=None)
    return create_causal_mask(config, states, mask, past_key_values=None)


def written_mask(mask: torch.Tensor, causal: bool, window: int | None) -> torch.Tensor:
    """[batch, 1, tokens, tokens] bool: whether a token (row) sees another (column)."""
    tokens = mask.shape[1]
    seen = mask.bool()[:, None, None, :]
    if causal:
        place = torch.arange(tokens, device=mask.device)
        behind = place[:, None] - place[None, :]  # how far a column lies behind its row
        seen = seen & (behind >= 0)
        if window is not None:
            seen = seen & (behind < window)
    return seen.expand(-1, 1, tokens, tokens)


def added_mask(seen: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The mask as eager attention adds it to its scores."""
    nothing = torch.zeros((), dtype=dtype, device=seen.device)
    return torch.where(seen, nothing, torch.finfo(dtype).min)


def hides_tokens(mask: torch.Tensor | None) -> bool:
    """Whether a mask hides a token. On CUDA it is not read: whoever knows that it hides none gives None."""
    return mask is not None and (mask.is_cuda or not bool(mask.all()))
