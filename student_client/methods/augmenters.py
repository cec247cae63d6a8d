"""Question and answer augmenter of a committee: from the student's state to questions, and back; asks no teacher."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from student_client.methods.projection import linear

__all__ = ["AnswerAugmenter", "CommitteeShape", "QuestionAugmenter"]


@dataclass(frozen=True)
class CommitteeShape:
    """Sizes of a committee's modules.

    Attributes:
        teachers: n.
        width: of the student's states, d_g.
        message_width: of the messages.
        message_tokens: tokens of a message, 1 or more.
        embedding_width: of the teacher embeddings, d_e; 0 for none.
        depth: linear layers of each MLP.
    """

    teachers: int
    width: int
    message_width: int
    message_tokens: int
    embedding_width: int
    depth: int


class QuestionAugmenter(nn.Module):
    """One question to each teacher from one state of the student, and how much each teacher counts.

    DiverseDistill (arXiv 2402.14035): k = W_k x, s = k E^T / sqrt(d_e), q_i = MLP_i([x ; k * E_i]). Without embeddings:
    s = W x + b and q_i = MLP_i(x). The MLPs are ours: LayerNorm on what goes in, GELU between `depth` linear layers, and
    a LayerNorm on each token of the message.

    Args:
        shape: of the committee.
        scores: whether it says how much teachers count; else all count the same.
        asks: whether it asks; else there are no MLPs.
        generator: initial weights are drawn from it alone.
    """

    def __init__(self, shape: CommitteeShape, scores: bool, asks: bool, generator: torch.Generator) -> None:
        super().__init__()
        self.shape = shape
        embeds = shape.embedding_width > 0 and (scores or asks)
        self.key = nn.Parameter(torch.empty(shape.embedding_width, shape.width)) if embeds else None  # W_k
        self.embeddings = nn.Parameter(torch.empty(shape.teachers, shape.embedding_width)) if embeds else None  # E
        if self.key is not None and self.embeddings is not None:
            bound = shape.width**-0.5
            nn.init.uniform_(self.key, -bound, bound, generator=generator)
            nn.init.normal_(self.embeddings, generator=generator)
        self.scorer = linear(shape.width, shape.teachers, generator) if scores and not embeds else None
        self._scores = scores
        width_in = shape.width + (shape.embedding_width if embeds else 0)
        width_out = shape.message_tokens * shape.message_width
        count = shape.teachers if asks else 0
        self.questions = nn.ModuleList(_mlp(width_in, width_out, shape.depth, generator) for _ in range(count))

    def keys(self, x: torch.Tensor) -> torch.Tensor | None:
        """k = W_k x: [batch, d_g] -> [batch, d_e]; None without embeddings."""
        return None if self.key is None else functional.linear(x, self.key)

    def scores(self, x: torch.Tensor, keys: torch.Tensor | None) -> torch.Tensor:
        """s [batch, n] of x [batch, d_g] and its keys; zeros where all teachers count the same."""
        scores = x.new_zeros(len(x), self.shape.teachers)
        if self._scores and keys is not None and self.embeddings is not None:
            scores = keys @ self.embeddings.T / self.shape.embedding_width**0.5
        elif self.scorer is not None:
            scores = self.scorer(x)
        return scores

    def question(self, place: int, x: torch.Tensor, keys: torch.Tensor | None) -> torch.Tensor:
        """q_i: the message [batch, tokens, message_width] to the teacher at a place."""
        known = x if keys is None or self.embeddings is None else torch.cat([x, keys * self.embeddings[place]], dim=-1)
        message = self.questions[place](known).unflatten(1, (self.shape.message_tokens, self.shape.message_width))
        return functional.layer_norm(message, message.shape[-1:])


class AnswerAugmenter(nn.Module):
    """z_i = AA_i(a_i): each teacher's answer in the student's space (arXiv 2402.14035); the MLP is ours."""

    def __init__(self, shape: CommitteeShape, generator: torch.Generator) -> None:
        super().__init__()
        self.width = shape.width
        width_in = shape.message_tokens * shape.message_width
        self.readers = nn.ModuleList(_mlp(width_in, shape.width, shape.depth, generator) for _ in range(shape.teachers))

    def forward(self, place: int, answer: torch.Tensor) -> torch.Tensor:
        """a_i [batch, tokens, message_width] of the teacher at a place -> z_i [batch, d_g]."""
        read: torch.Tensor = self.readers[place](answer.flatten(1))
        return read


def _mlp(width_in: int, width_out: int, depth: int, generator: torch.Generator) -> nn.Sequential:
    hidden = max(width_in, width_out)
    layers: list[nn.Module] = [nn.LayerNorm(width_in)]
    for level in range(depth - 1):
        layers += [linear(hidden if level else width_in, hidden, generator), nn.GELU()]
    return nn.Sequential(*layers, linear(hidden if depth > 1 else width_in, width_out, generator))
