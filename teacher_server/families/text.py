"""What text teachers share: ids in, the attention mask as their own mask; knows no architecture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers.masking_utils import create_bidirectional_mask, create_causal_mask

from teacher_server.families.family import Family, LayerSpan

__all__ = ["TextFamily"]


class TextFamily(Family):
    """A teacher that reads `input_ids` and `attention_mask`; every block gets the same attention mask."""

    @property
    def max_tokens(self) -> int | None:
        """The length of the position table."""
        return int(self.config.max_position_embeddings)

    def own_mask(self, inputs: Mapping[str, torch.Tensor], states: torch.Tensor) -> torch.Tensor:
        """The attention mask, or all ones where none was given."""
        mask = inputs.get("attention_mask")
        if mask is None:
            return torch.ones(states.shape[:2], dtype=torch.bool, device=states.device)
        return mask.to(states.device, torch.bool)

    def _arguments(
        self, states: torch.Tensor, mask: torch.Tensor | None, span: LayerSpan
    ) -> Sequence[Mapping[str, Any]]:
        return [{"attention_mask": self._attention_mask(states, mask)}] * len(span)

    def _attention_mask(self, states: torch.Tensor, mask: torch.Tensor | None) -> Any:
        """As the model's own forward builds it, for whatever attention implementation is configured."""
        if getattr(self.config, "is_decoder", False):
            return create_causal_mask(self.config, states, mask, past_key_values=None)
        return create_bidirectional_mask(self.config, states, mask)
