"""A language model's likeliest next tokens, some positions at a time: no logits of a whole batch are kept; knows no cache."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import torch

__all__ = ["is_likeliest", "likeliest"]

_PIECE_NUMBERS = 2**23
"""Logits of a piece [positions, vocabulary]: some 32 MB of float32."""

_PORT = re.compile(r"(logits|logprobs|tokens)\.top(\d+)(?:\.t(\d+))?")


def is_likeliest(port: str) -> bool:
    """Whether a port is `logits.top<k>`, `logprobs.top<k>`, `logprobs.top<k>.t<percent>` or `tokens.top<k>`."""
    return _PORT.fullmatch(port) is not None


def likeliest(
    finished: torch.Tensor, head: Callable[[torch.Tensor], torch.Tensor], ports: Sequence[str]
) -> dict[str, torch.Tensor]:
    """These ports, from states to their logits and on in pieces of the positions.

    Args:
        finished: [batch, tokens, width], what the head reads.
        head: from [positions, width] to logits [positions, vocabulary].
        ports: those of `is_likeliest`.

    Returns:
        `tokens.top<k>`: [batch, tokens, k] int32, the k likeliest, the likeliest first.
        `logprobs.top<k>.t<percent>`: [batch, tokens, k + 1] float32, their log-probabilities at temperature percent / 100,
        and last the log of what all other tokens have together; k is at most vocabulary - 1, so that one is left. Without
        `.t<percent>` the temperature is 1.
        `logits.top<k>`: [batch, tokens, 2, k] float32, their logits and, as floats, their places.
    """
    flat = finished.flatten(0, 1)
    positions = max(1, _PIECE_NUMBERS // max(1, head(flat[:1]).shape[-1]))
    found: dict[str, list[torch.Tensor]] = {port: [] for port in ports}
    for piece in torch.split(flat, positions):
        logits = head(piece).float()
        for port in ports:
            found[port].append(_of(logits, port))
    return {port: torch.cat(parts).view(*finished.shape[:2], *parts[0].shape[1:]) for port, parts in found.items()}


def _of(logits: torch.Tensor, port: str) -> torch.Tensor:
    """One port of logits [positions, vocabulary]."""
    match = _PORT.fullmatch(port)
    assert match is not None, "asked for by is_likeliest"
    kind, vocabulary = match[1], logits.shape[-1]
    values, places = logits.topk(min(int(match[2]), vocabulary if kind == "logits" else vocabulary - 1), dim=-1)
    if kind == "tokens":
        return places.int()
    if kind == "logits":
        return torch.stack([values, places.to(values.dtype)], dim=-2)
    temperature = int(match[3] or 100) / 100
    everything = (logits / temperature).logsumexp(-1, keepdim=True)
    rest = (logits / temperature).scatter_(-1, places, -torch.inf).logsumexp(-1, keepdim=True)
    return torch.cat([values / temperature, rest], dim=-1) - everything
