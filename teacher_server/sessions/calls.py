"""What a session remembers of its calls: Forwards until their Backward, gradients until the Step; plain values."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import torch

from teaching_protocol.verbs import ForwardRequest

__all__ = ["Extent", "Grads", "OpenCall", "added"]

Grads = list[torch.Tensor | None]
"""Gradients of a codec's parameters, in their order; None where there is none."""


@dataclass(frozen=True)
class Extent:
    """Rows and padded area of a call, and the bucket in which it may meet others'; None runs alone."""

    rows: int = 0
    tokens: int = 0
    bucket: Hashable | None = None


@dataclass
class OpenCall:
    """A Forward whose Backward is to come: `request` is None once its inputs were let go; `run_again` for its Backward."""

    request: ForwardRequest | None
    size_bytes: int
    finished: bool = False
    stale: bool = False
    run_again: bool = False


def added(gathered: Grads, found: Grads) -> Grads:
    """The sums, place by place; `found` itself where nothing was gathered before."""
    if not gathered:
        return found
    return [new if old is None else old if new is None else old + new for old, new in zip(gathered, found, strict=True)]
