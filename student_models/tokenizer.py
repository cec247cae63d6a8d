"""The text student's own word-level tokenizer, and what tells any two apart; knows no model and reads no file but its own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerFast

from teaching_protocol.errors import ModelLoadError

__all__ = [
    "PADDING",
    "encode",
    "hash_of",
    "pretrained_tokenizer",
    "read_tokenizer",
    "tokenizer_of",
    "train_tokenizer",
    "vocabulary_of",
    "wrapped",
]

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


def pretrained_tokenizer(name: str) -> Any:
    """The transformers tokenizer of a model, by name or folder.

    Raises:
        ModelLoadError: it cannot be had.
    """
    try:
        return AutoTokenizer.from_pretrained(name)
    except Exception as error:  # tokenizers raises bare Exception
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelLoadError(
            f"the tokenizer of {name} does not load ({reason}); give the name or folder of a model that has one"
        ) from error


def vocabulary_of(name: str, tokenizer: Any) -> int:
    """Rows of the table of tokens of the model that a tokenizer comes with; without a model, those the tokenizer needs."""
    needed = 1 + max(map(int, tokenizer.get_vocab().values()))
    try:
        config = PreTrainedConfig.get_config_dict(name)[0]
    except (OSError, ValueError):
        return needed
    return max(needed, int(config.get("vocab_size") or 0))


def tokenizer_of(name: str, max_tokens: int) -> Tokenizer:
    """The tokenizer of another model for a student with a table of tokens, as `read_tokenizer` gives its own.

    Raises:
        ModelLoadError: it cannot be had, or pads with another token than [PAD].
    """
    backend = getattr(pretrained_tokenizer(name), "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer) or backend.token_to_id(PADDING) is None:
        raise ModelLoadError(
            f"the tokenizer of {name} has no token {PADDING}, which a new student of text pads with; give that of a BERT-like "
            "model or of another student, or begin with student.pretrained"
        )
    return _limited(backend, max_tokens)


def wrapped(tokenizer: Tokenizer, max_tokens: int) -> PreTrainedTokenizerFast:
    """A tokenizer of ours as transformers has them."""
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PADDING,
        unk_token=_UNKNOWN,
        cls_token=_FIRST,
        model_max_length=max_tokens,
    )


def hash_of(tokenizer: Any) -> str:
    """SHA-256 of what a tokenizer does to a text, as hex digits; of transformers or of tokenizers.

    It covers everything but truncation and padding, which are settings of a call.
    """
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if isinstance(backend, Tokenizer):
        whole = json.loads(backend.to_str())
        kept = json.dumps({key: value for key, value in whole.items() if key not in ("truncation", "padding")})
    else:
        kept = json.dumps([type(tokenizer).__name__, sorted(tokenizer.get_vocab().items())])
    return hashlib.sha256(kept.encode()).hexdigest()


def _limited(tokenizer: Tokenizer, max_tokens: int) -> Tokenizer:
    tokenizer.enable_truncation(max_length=max_tokens)
    tokenizer.enable_padding(pad_id=tokenizer.token_to_id(PADDING), pad_token=PADDING)
    return tokenizer
