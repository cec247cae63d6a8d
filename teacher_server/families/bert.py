"""Bidirectional text encoders built like BERT; knows no other family."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from teacher_server.families.family import LayerSpan
from teacher_server.families.text import TextFamily

__all__ = ["Bert", "DistilBert", "Electra", "MPNet", "Roberta"]


class Bert(TextFamily):
    """Embeddings, then `encoder.layer`; pooled by the mean over real tokens, as sentence encoders are."""

    model_types = ("bert",)

    def embed(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Word, position and type embeddings of `input_ids` [batch, tokens]."""
        states: torch.Tensor = self.base.embeddings(input_ids=inputs["input_ids"])
        return states

    def _blocks(self) -> Sequence[nn.Module]:
        blocks: Sequence[nn.Module] = self.base.encoder.layer
        return blocks


class Roberta(Bert):
    """BERT whose positions start behind the padding id."""

    model_types = ("roberta",)

    @property
    def max_tokens(self) -> int | None:
        """The length of the position table, less its unused first rows."""
        return int(self.config.max_position_embeddings) - int(self.config.pad_token_id) - 1


class MPNet(Bert):
    """BERT with one relative position bias for all its blocks, whichever of them are run."""

    model_types = ("mpnet",)

    @property
    def max_tokens(self) -> int | None:
        """The length of the position table, less its unused first rows."""
        return int(self.config.max_position_embeddings) - int(self.base.embeddings.padding_idx) - 1

    def _arguments(
        self, states: torch.Tensor, mask: torch.Tensor | None, span: LayerSpan
    ) -> Sequence[Mapping[str, Any]]:
        with states.device:  # where it makes its positions: a copy from the host would be waited for
            bias = self.base.encoder.compute_position_bias(states)
        return [{"attention_mask": self._attention_mask(states, mask), "position_bias": bias}] * len(span)


class DistilBert(Bert):
    """BERT without token types."""

    model_types = ("distilbert",)

    def _blocks(self) -> Sequence[nn.Module]:
        blocks: Sequence[nn.Module] = self.base.transformer.layer
        return blocks


class Electra(Bert):
    """BERT whose embeddings may be narrower than its states."""

    model_types = ("electra",)

    def embed(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The embeddings, projected to the width of the states."""
        states = super().embed(inputs)
        projection = getattr(self.base, "embeddings_project", None)
        return states if projection is None else projection(states)
