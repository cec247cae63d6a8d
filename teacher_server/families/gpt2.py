"""GPT-2: a causal decoder with learned positions; knows no other family."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from teacher_server.families.masks import attention_mask
from teacher_server.families.text import TextFamily

__all__ = ["GPT2"]


class GPT2(TextFamily):
    """Token and position embeddings, causal blocks, a final norm; pooled by the mean over real tokens [ours]."""

    model_types = ("gpt2",)

    def embed(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Token plus position embeddings of `input_ids` [batch, tokens]."""
        ids = inputs["input_ids"]
        positions = torch.arange(ids.shape[1], device=ids.device).unsqueeze(0)
        states: torch.Tensor = self.base.drop(self.base.wte(ids) + self.base.wpe(positions))
        return states

    def finish(self, states: torch.Tensor) -> torch.Tensor:
        """The final norm."""
        finished: torch.Tensor = self.base.ln_f(states)
        return finished

    def _blocks(self) -> Sequence[nn.Module]:
        blocks: Sequence[nn.Module] = self.base.h
        return blocks

    def _attention_mask(self, states: torch.Tensor, mask: torch.Tensor | None) -> Any:
        return attention_mask(self.config, states, mask, causal=True)
