"""What text teachers share: ids in, the attention mask as their own mask; knows no architecture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from teacher_server.families.family import LayerSpan
from teacher_server.families.inputs import TextInputs
from teacher_server.families.masks import attention_mask
from teacher_server.families.pretrained import PretrainedFamily

__all__ = ["TextFamily"]


class TextFamily(PretrainedFamily):
    """A teacher that reads `input_ids` and `attention_mask`; every block gets the same attention mask."""

    @property
    def vocabulary_size(self) -> int:
        """Rows of the token table."""
        return int(self.model.get_input_embeddings().num_embeddings)

    @property
    def max_tokens(self) -> int | None:
        """The length of the position table."""
        return int(self.config.max_position_embeddings)

    def build_inputs(self) -> TextInputs:
        """Reads ids, and texts where there is a tokenizer."""
        config, tokenizer = self.model.config, self.tokenizer
        eos = getattr(config, "eos_token_id", None)
        pad = _first_id(getattr(config, "pad_token_id", None), getattr(tokenizer, "pad_token_id", None), eos)
        if getattr(config, "pad_token_id", None) is None:
            config.pad_token_id = pad  # a decoder's classification head finds the last real token by it
        empty = _first_id(getattr(tokenizer, "bos_token_id", None), getattr(config, "bos_token_id", None), eos, pad)
        tokenize = None if tokenizer is None else self._tokenize
        return TextInputs(tokenize, self.vocabulary_size, pad, empty, self.max_tokens)

    def _tokenize(self, texts: Sequence[str], limit: int) -> Sequence[Sequence[int]]:
        assert self.tokenizer is not None  # else there is no port for texts
        ids: Sequence[Sequence[int]] = self.tokenizer(list(texts), truncation=True, max_length=limit)["input_ids"]
        return ids

    def _arguments(
        self, states: torch.Tensor, mask: torch.Tensor | None, span: LayerSpan
    ) -> Sequence[Mapping[str, Any]]:
        return [{"attention_mask": self._attention_mask(states, mask)}] * len(span)

    def _attention_mask(self, states: torch.Tensor, mask: torch.Tensor | None) -> Any:
        """As the model's own forward builds it, for whatever attention implementation is configured."""
        return attention_mask(self.config, states, mask, causal=bool(getattr(self.config, "is_decoder", False)))


def _first_id(*candidates: int | Sequence[int] | None) -> int:
    for candidate in candidates:
        number = candidate[0] if isinstance(candidate, Sequence) and candidate else candidate
        if isinstance(number, int) and number >= 0:
            return number
    return 0
