"""What a call asks for while it runs, so that several calls can be answered at once; runs nothing itself.

A call is a generator: it yields an ask wherever work can be shared with other calls, and goes on with the answer.
`merging.py` runs calls in step and answers equal asks together.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from teacher_server.families import LayerSpan
from teacher_server.sessions.codecs import TeacherCodec

__all__ = ["Ask", "Asking", "Decode", "Encode", "Through", "decode", "encode", "through"]


@dataclass(frozen=True, eq=False)
class Ask:
    """Work that a call wants done; the answer's type is the kind's own."""


@dataclass(frozen=True, eq=False)
class Decode(Ask):
    """Dec_h of one codec: message [batch, tokens, message_width] -> states [batch, tokens, width]."""

    codec: TeacherCodec
    message: torch.Tensor
    width: int


@dataclass(frozen=True, eq=False)
class Encode(Ask):
    """Enc_h of one codec: states [batch, tokens, width] -> message [batch, tokens, message_width]."""

    codec: TeacherCodec
    states: torch.Tensor


@dataclass(frozen=True, eq=False)
class Through(Ask):
    """The body's span: states [batch, tokens, width] at its start -> states at its end, float32."""

    states: torch.Tensor
    mask: torch.Tensor | None  # [batch, tokens] bool; None where all tokens are real
    span: LayerSpan


Found = TypeVar("Found")
Asking = Generator[Ask, Any, Found]
"""A call that yields asks, is sent their answers, and returns what it found."""


def decode(codec: TeacherCodec, message: torch.Tensor, width: int) -> Asking[torch.Tensor]:
    """Asks for `Decode`."""
    states: torch.Tensor = yield Decode(codec, message, width)
    return states


def encode(codec: TeacherCodec, states: torch.Tensor) -> Asking[torch.Tensor]:
    """Asks for `Encode`."""
    message: torch.Tensor = yield Encode(codec, states)
    return message


def through(states: torch.Tensor, mask: torch.Tensor | None, span: LayerSpan) -> Asking[torch.Tensor]:
    """Asks for `Through`."""
    left: torch.Tensor = yield Through(states, mask, span)
    return left
