"""The teacher-side codec of one session: Enc_h, Dec_h and the pooling to message tokens.

Lives at the body's edge, always in float32, any shape per student. Knows no session and no body.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from teacher_server.families import segments

__all__ = ["CodecShape", "TeacherCodec", "codec_parameters"]


@dataclass(frozen=True)
class CodecShape:
    """Widths of the teacher's states at the two ends of the span, and the student's wishes."""

    enter_width: int
    exit_width: int
    message_width: int
    message_tokens: int = 0
    pooling: str = "mean"
    depth: int = 2


class TeacherCodec(nn.Module):
    """Encoder (state -> message) and decoder (message -> state) of the teacher.

    One encoder and one decoder serve both ends of the span where the widths agree, as in Talking
    Models section 3; where they do not (CNNs) there is one a width (ours). The layers follow
    methods.md: a `depth`-layer MLP of width max(state, message), messages LayerNormed (ours).

    Args:
        shape: of the states and of the messages.
        seed: of the initial weights, which come from a generator of the codec's own: enrolling at the same time as
            another session, or beside any other thread that draws, changes nothing. None allocates no weights.
    """

    def __init__(self, shape: CodecShape, seed: int | None) -> None:
        super().__init__()
        self.shape = shape
        with torch.device("meta"):
            self._build()
        if seed is not None:
            _draw(self.to_empty(device="cpu"), torch.Generator().manual_seed(seed))

    def _build(self) -> None:
        shape = self.shape
        widths = sorted({shape.enter_width, shape.exit_width})
        self.encoders = nn.ModuleDict({str(w): _encoder(w, shape.message_width, shape.depth) for w in widths})
        self.decoders = nn.ModuleDict({str(w): _mlp(shape.message_width, w, shape.depth) for w in widths})
        self.queries = nn.ParameterDict(
            {str(w): nn.Parameter(torch.empty(shape.message_tokens, w)) for w in widths}
            if shape.pooling == "attention" and shape.message_tokens
            else {}
        )

    def encoder(self, width: int) -> nn.Sequential:
        """Enc_h: states [batch, tokens, width] -> message [batch, tokens, message_width]."""
        encoder = self.encoders[str(width)]
        assert isinstance(encoder, nn.Sequential)
        return encoder

    def decoder(self, width: int) -> nn.Sequential:
        """Dec_h: message [batch, tokens, message_width] -> states [batch, tokens, width]."""
        decoder = self.decoders[str(width)]
        assert isinstance(decoder, nn.Sequential)
        return decoder

    def pool(self, states: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Pools [batch, tokens, width] to the session's message tokens, and gives their mask.

        With `message_tokens` 0 states and mask come back as they are.
        """
        count = self.shape.message_tokens
        if count == 0:
            return states, mask
        pooled = self._weights(states, mask) @ states  # [batch, message tokens, width]
        return pooled, torch.ones(pooled.shape[:2], dtype=torch.bool, device=states.device)

    def _weights(self, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """[batch, message tokens, tokens], rows sum to one over the real tokens."""
        count, (batch, tokens) = self.shape.message_tokens, mask.shape
        if self.shape.pooling == "attention":
            scores: torch.Tensor = (
                self.queries[str(states.shape[-1])] @ states.transpose(1, 2) / states.shape[-1] ** 0.5
            )
            return scores.masked_fill(~mask[:, None, :], torch.finfo(scores.dtype).min).softmax(-1)
        if self.shape.pooling == "cls":
            weights = torch.eye(count, tokens, dtype=states.dtype, device=states.device).expand(batch, -1, -1)
            return weights * mask[:, None, :]
        return segments(mask, count).to(states.dtype)


def codec_parameters(shape: CodecShape) -> int:
    """Parameters a codec of this shape has; allocates nothing."""
    return sum(parameter.numel() for parameter in TeacherCodec(shape, seed=None).parameters())


def _draw(codec: TeacherCodec, generator: torch.Generator) -> None:
    """PyTorch's own initial weights, from this generator."""
    for module in codec.modules():
        if isinstance(module, nn.Linear):
            nn.init.kaiming_uniform_(module.weight, a=math.sqrt(5), generator=generator)
            bound = 1 / math.sqrt(module.in_features)
            nn.init.uniform_(module.bias, -bound, bound, generator=generator)
        elif isinstance(module, nn.LayerNorm):
            module.reset_parameters()
    for queries in codec.queries.values():
        nn.init.normal_(queries, generator=generator)
        with torch.no_grad():
            queries /= queries.shape[-1] ** 0.5


def _mlp(width_in: int, width_out: int, depth: int) -> nn.Sequential:
    """`depth` linear layers with GELU between them; the input is LayerNormed."""
    hidden = max(width_in, width_out)
    layers: list[nn.Module] = [nn.LayerNorm(width_in)]
    for level in range(depth):
        layers.append(nn.Linear(hidden if level else width_in, width_out if level == depth - 1 else hidden))
        if level < depth - 1:
            layers.append(nn.GELU())
    return nn.Sequential(*layers)


def _encoder(width: int, message_width: int, depth: int) -> nn.Sequential:
    return nn.Sequential(*_mlp(width, message_width, depth), nn.LayerNorm(message_width))
