"""The head of a causal language model: its weights alone, from a model's files, and what tells two apart; loads no model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from transformers.utils import cached_file

from teaching_protocol.errors import ModelLoadError

__all__ = ["hash_of_head", "read_head"]

_OWN, _TIED = ("lm_head.weight",), ("embed_tokens.weight", "wte.weight")
"""How names of a head end: one of its own, and one that is the table of the tokens."""


def read_head(name: str | Path) -> torch.Tensor:
    """The weights [vocabulary, width] that make logits of a causal language model's last hidden states.

    Args:
        name: of a model on a hub, or a folder with its safetensors files.

    Raises:
        ModelLoadError: they cannot be had.
    """
    try:
        index = cached_file(str(name), "model.safetensors.index.json", _raise_exceptions_for_missing_entries=False)
        if index is None:
            return _from_file(str(name), "model.safetensors", None)
        files = json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"]
        key = _key(files)
        return _from_file(str(name), files[key], key)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelLoadError(
            f"no head of a language model can be read from {name} ({reason}); give the name or folder of a causal language "
            "model with safetensors weights"
        ) from error


def hash_of_head(head: torch.Tensor) -> str:
    """SHA-256 of its shape and its numbers in bfloat16, as hex digits: the same of a model that is served in half precision."""
    numbers = head.detach().to(torch.bfloat16).cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
    digest = hashlib.sha256(f"{list(head.shape)}\n".encode())
    digest.update(numbers)
    return digest.hexdigest()


def _from_file(name: str, file: str, key: str | None) -> torch.Tensor:
    path = cached_file(name, file)
    with safe_open(str(path), framework="pt") as tensors:
        found: torch.Tensor = tensors.get_tensor(key or _key(tensors.keys()))
    return found


def _key(names: Iterable[str]) -> str:
    """The name of the head among those of a model's weights."""
    known = list(names)
    for endings in (_OWN, _TIED):
        for name in known:
            if name.endswith(endings):
                return name
    raise ValueError("none of its weights is named as a head or a table of tokens")
