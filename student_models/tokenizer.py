"""The text student's own word-level tokenizer; knows no model and reads no file but its own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from teaching_protocol.errors import ModelLoadError

__all__ = ["PADDING", "encode", "read_tokenizer", "train_tokenizer"]

PADDING, _UNKNOWN, _FIRST = "[PAD]", "[UNK]", "[CLS]"


def train_tokenizer(texts: Iterable[str], vocabulary_size: int, max_tokens: int) -> Tokenizer:
    """Builds a tokenizer of lower-case words and punctuation: the most frequent first, ties by the alphabet.

    A word seen once stays unknown, so that the unknown word's embedding is trained. Every text starts with
    [CLS], so that none is empty.
    """
    tokenizer = Tokenizer(models.WordLevel(unk_token=_UNKNOWN))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = [PADDING, _UNKNOWN, _FIRST]
    trainer = trainers.WordLevelTrainer(
        vocab_size=vocabulary_size, min_frequency=2, show_progress=False, special_tokens=special
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{_FIRST} $A", special_tokens=[(_FIRST, special.index(_FIRST))]
    )
    return _limited(tokenizer, max_tokens)


def read_tokenizer(path: Path, max_tokens: int) -> Tokenizer:
    """Reads a saved tokenizer.

    Raises:
        ModelLoadError: the file is missing or is no tokenizer.
    """
    try:
        tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception as error:  # tokenizers raises bare Exception
        raise ModelLoadError(f"{path} cannot be loaded: {error}; save the student again") from error
    return _limited(tokenizer, max_tokens)


def encode(tokenizer: Tokenizer, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids [N, longest] int64 and the mask [N, longest] bool of N texts, padded on the right."""
    if not texts:
        return torch.zeros(0, 1, dtype=torch.int64), torch.zeros(0, 1, dtype=torch.bool)
    rows = tokenizer.encode_batch_fast(list(texts))
    ids = torch.tensor([row.ids for row in rows], dtype=torch.int64)
    return ids, torch.tensor([row.attention_mask for row in rows], dtype=torch.bool)


def _limited(tokenizer: Tokenizer, max_tokens: int) -> Tokenizer:
    tokenizer.enable_truncation(max_length=max_tokens)
    tokenizer.enable_padding(pad_id=tokenizer.token_to_id(PADDING), pad_token=PADDING)
    return tokenizer
