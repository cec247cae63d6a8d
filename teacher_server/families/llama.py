"""Causal decoders with rotary positions, built like Llama; knows no other family."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from teacher_server.families.family import LayerSpan
from teacher_server.families.masks import attention_mask
from teacher_server.families.text import TextFamily

__all__ = ["Llama"]


class Llama(TextFamily):
    """Token embeddings, causal blocks, a final norm. Tokens entering at any cut stand at positions 0, 1, ...

    Pooled by the mean over real tokens (not the last token: a message has no reserved last place) [ours].
    """

    model_types = ("llama", "mistral", "qwen2")

    @property
    def takes_padding(self) -> bool:  # type: ignore[override]
        """Not where the rotation depends on the length of the batch."""
        return self.base.rotary_emb.rope_type not in ("dynamic", "longrope")

    def embed(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Token embeddings of `input_ids` [batch, tokens]."""
        states: torch.Tensor = self.base.embed_tokens(inputs["input_ids"])
        return states

    def finish(self, states: torch.Tensor) -> torch.Tensor:
        """The final norm."""
        finished: torch.Tensor = self.base.norm(states)
        return finished

    def _blocks(self) -> Sequence[nn.Module]:
        blocks: Sequence[nn.Module] = self.base.layers
        return blocks

    def _arguments(
        self, states: torch.Tensor, mask: torch.Tensor | None, span: LayerSpan
    ) -> Sequence[Mapping[str, Any]]:
        positions = torch.arange(states.shape[1], device=states.device).unsqueeze(0)  # [1, tokens]
        rotary = self.base.rotary_emb(states, positions)
        slides = [self._slides(layer) for layer in range(span.start, span.stop)]
        windows = {False: None, True: getattr(self.config, "sliding_window", None)}
        masks = {slide: attention_mask(self.config, states, mask, True, windows[slide]) for slide in set(slides)}
        shared = {"position_embeddings": rotary, "position_ids": positions}
        return [{"attention_mask": masks[slide], **shared} for slide in slides]

    def _slides(self, layer: int) -> bool:
        """Whether the block sees a sliding window only: named block by block, or one window for all."""
        kinds = getattr(self.config, "layer_types", None)
        if kinds is not None:
            return bool(kinds[layer] == "sliding_attention")
        return getattr(self.config, "sliding_window", None) is not None
