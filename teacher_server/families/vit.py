"""Vision transformers; knows no other family."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from teacher_server.families.family import LayerSpan
from teacher_server.families.image import ImageFamily
from teacher_server.families.masks import attention_mask

__all__ = ["ViT"]


class ViT(ImageFamily):
    """Token 0 is the CLS token, the others are patches; pooled by the CLS token."""

    model_types = ("vit",)

    def embed(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """CLS token and patches of `pixel_values` [batch, channels, height, width], with positions."""
        states: torch.Tensor = self.base.embeddings(inputs["pixel_values"])
        return states

    def finish(self, states: torch.Tensor) -> torch.Tensor:
        """The final norm."""
        finished: torch.Tensor = self.base.layernorm(states)
        return finished

    def pool(self, finished: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """The CLS token, [batch, width]."""
        return finished[:, 0]

    def _blocks(self) -> Sequence[nn.Module]:
        blocks: Sequence[nn.Module] = self.base.layers
        return blocks

    def _arguments(
        self, states: torch.Tensor, mask: torch.Tensor | None, span: LayerSpan
    ) -> Sequence[Mapping[str, Any]]:
        return [{"attention_mask": attention_mask(self.config, states, mask, causal=False)}] * len(span)
