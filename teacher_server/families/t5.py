"""The encoder of T5, alone or out of an encoder-decoder; knows no decoder and no other family."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from teacher_server.families.family import LayerSpan
from teacher_server.families.text import TextFamily

__all__ = ["T5"]


class T5(TextFamily):
    """The relative position bias is block 0's and is given to every block, wherever the span starts."""

    model_types = ("t5",)

    @property
    def heads(self) -> tuple[str, ...]:
        """None: a head of T5 reads the decoder."""
        return ()

    @property
    def max_tokens(self) -> int | None:
        """Relative positions have no end."""
        return None

    def embed(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Token embeddings of `input_ids` [batch, tokens]."""
        states: torch.Tensor = self.base.dropout(self.base.embed_tokens(inputs["input_ids"]))
        return states

    def finish(self, states: torch.Tensor) -> torch.Tensor:
        """The final norm."""
        finished: torch.Tensor = self.base.dropout(self.base.final_layer_norm(states))
        return finished

    def _base(self, model: PreTrainedModel) -> Any:
        return model.base_model.encoder

    def _blocks(self) -> Sequence[nn.Module]:
        blocks: Sequence[nn.Module] = self.base.block
        return blocks

    def _arguments(
        self, states: torch.Tensor, mask: torch.Tensor | None, span: LayerSpan
    ) -> Sequence[Mapping[str, Any]]:
        tokens = states.shape[1]
        bias = self.base.block[0].layer[0].SelfAttention.compute_bias(tokens, tokens, device=states.device)
        return [{"attention_mask": self._attention_mask(states, mask), "position_bias": bias}] * len(span)
