"""The student-side codec: Enc_g, Dec_g and the pooling to message tokens; knows no teacher and no task."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import nn
from torch.nn import functional

from student_models.student import States
from teaching_protocol.errors import InvalidSetting, InvalidTensor

__all__ = ["CodecShape", "Pooling", "StudentCodec"]

Pooling = Literal["mean", "cls", "attention"]
"""How states become message tokens."""


@dataclass(frozen=True)
class CodecShape:
    """Shape of a student-side codec.

    Attributes:
        width: of the student's states, d_g.
        message_width: of the shared message space, d_m.
        message_tokens: M tokens a message; 0 leaves the student's tokens as they are.
        pooling: how states become M tokens: mean (of M even segments), cls (the first M tokens)
            or attention (M learned queries).
        depth: linear layers of the encoder and of the decoder.

    Raises:
        InvalidSetting: a width or depth below 1, negative message tokens, an unknown pooling.
    """

    width: int
    message_width: int
    message_tokens: int = 0
    pooling: Pooling = "mean"
    depth: int = 2

    def __post_init__(self) -> None:
        for name, least in {"width": 1, "message_width": 1, "message_tokens": 0, "depth": 1}.items():
            if getattr(self, name) < least:
                raise InvalidSetting(f"{name}: received {getattr(self, name)}, expected at least {least}; raise it")
        if self.pooling not in get_args(Pooling):
            known = ", ".join(get_args(Pooling))
            raise InvalidSetting(f"pooling: received {self.pooling!r}, expected one of {known}; choose one of them")


class StudentCodec(nn.Module):
    """Encoder (states -> message) and decoder (message -> states) of the student.

    Talking Models (arXiv 2310.03188): a hidden state becomes a message, any message a hidden state. One
    encoder and one decoder serve both taps, and the layers are ours: a `depth`-layer MLP of width
    max(d_g, d_m) with GELU on LayerNormed input, and a LayerNorm on the message.

    Args:
        shape: of the states and of the messages.
        seed: of the initial weights. The global random state is neither read nor moved.
    """

    def __init__(self, shape: CodecShape, seed: int = 0) -> None:
        super().__init__()
        self.shape = shape
        with torch.device("meta"):
            encoder = _mlp(shape.width, shape.message_width, shape.depth)
            self.encoder = nn.Sequential(*encoder, nn.LayerNorm(shape.message_width))
            self.decoder = nn.Sequential(*_mlp(shape.message_width, shape.width, shape.depth))
            learned = shape.message_tokens if shape.pooling == "attention" else 0
            self.queries = nn.Parameter(torch.empty(learned, shape.width)) if learned else None
        _draw(self.to_empty(device="cpu"), torch.Generator().manual_seed(seed))

    def pool(self, states: States) -> States:
        """Pools states [batch, tokens, d_g] to [batch, M, d_g]; with M = 0 they come back as they are.

        A row without a real token gives zeros and a mask of False.
        """
        if self.shape.message_tokens == 0:
            return states
        hidden = states.hidden.masked_fill(~states.mask[..., None], 0.0)
        weights = self._weights(replace(states, hidden=hidden))  # [batch, M, tokens]
        return States(hidden=weights @ hidden, mask=weights.detach().sum(-1) > 0)

    def encode(self, hidden: torch.Tensor) -> torch.Tensor:
        """Enc_g: states [batch, tokens, d_g] -> message [batch, tokens, d_m].

        Raises:
            InvalidTensor: states of another width.
        """
        _check_width(hidden, "hidden", self.shape.width)
        message: torch.Tensor = self.encoder(hidden)
        return message

    def decode(self, message: torch.Tensor) -> torch.Tensor:
        """Dec_g: message [batch, tokens, d_m] -> states [batch, tokens, d_g].

        Raises:
            InvalidTensor: a message of another width.
        """
        _check_width(message, "message", self.shape.message_width)
        hidden: torch.Tensor = self.decoder(message)
        return hidden

    def _weights(self, states: States) -> torch.Tensor:
        """[batch, M, tokens]: what each message token takes from each token; a row of it sums to one or is zero."""
        if self.queries is not None:
            return _attention(self.queries, states)
        if self.shape.pooling == "cls":
            first = torch.eye(self.shape.message_tokens, states.mask.shape[1], device=states.mask.device)
            return (first * states.mask[:, None, :]).to(states.hidden.dtype)
        return _segments(states.mask, self.shape.message_tokens).to(states.hidden.dtype)


def _draw(codec: StudentCodec, generator: torch.Generator) -> None:
    """PyTorch's own initial weights, from this generator."""
    for module in codec.modules():
        if isinstance(module, nn.Linear):
            nn.init.kaiming_uniform_(module.weight, a=math.sqrt(5), generator=generator)
            bound = 1 / math.sqrt(module.in_features)
            nn.init.uniform_(module.bias, -bound, bound, generator=generator)
        elif isinstance(module, nn.LayerNorm):
            module.reset_parameters()
    if codec.queries is not None:
        nn.init.normal_(codec.queries, generator=generator)


def _mlp(width_in: int, width_out: int, depth: int) -> list[nn.Module]:
    hidden = max(width_in, width_out)
    layers: list[nn.Module] = [nn.LayerNorm(width_in)]
    for level in range(depth - 1):
        layers += [nn.Linear(hidden if level else width_in, hidden), nn.GELU()]
    return [*layers, nn.Linear(hidden if depth > 1 else width_in, width_out)]


def _attention(queries: torch.Tensor, states: States) -> torch.Tensor:
    width = states.hidden.shape[-1]
    keys = functional.layer_norm(states.hidden, (width,))
    scores = queries.to(keys.dtype) @ keys.transpose(1, 2) / width**0.5  # [batch, M, tokens]
    padding = ~states.mask[:, None, :]
    weights: torch.Tensor = scores.masked_fill(padding, torch.finfo(scores.dtype).min).softmax(-1)
    return weights.masked_fill(padding, 0.0)


def _segments(mask: torch.Tensor, count: int) -> torch.Tensor:
    """Even segments of a row's n real tokens: the j-th is [floor(j n / M), ceil((j + 1) n / M)), so none is empty."""
    lengths = mask.sum(1)[:, None, None]  # [batch, 1, 1]
    rank = (mask.cumsum(1) - 1)[:, None, :]  # [batch, 1, tokens]
    j = torch.arange(count, device=mask.device)[None, :, None]
    start, stop = j * lengths // count, ((j + 1) * lengths + count - 1) // count
    member = ((rank >= start) & (rank < stop) & mask[:, None, :]).float()
    return member / member.sum(-1, keepdim=True).clamp(min=1.0)


def _check_width(tensor: torch.Tensor, name: str, width: int) -> None:
    if tensor.dim() != 3 or tensor.shape[-1] != width:
        raise InvalidTensor(
            f"{name}: received shape {list(tensor.shape)}, expected [batch, tokens, {width}]; "
            "build the codec with the widths of the student and of the session"
        )
