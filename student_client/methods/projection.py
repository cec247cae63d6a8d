"""From the student's states to vectors a teacher's can be compared with; knows no loss and no teacher."""

from __future__ import annotations

import math

import torch
from torch import nn

from student_client.losses.masks import pooled
from student_models import States

__all__ = ["linear", "masked_mean", "segment_means"]


def masked_mean(states: States) -> torch.Tensor:
    """Mean over each row's real tokens, [batch, width]; zeros for a row without any."""
    return pooled(states.hidden, states.mask)


def segment_means(states: States, count: int) -> States:
    """Means of `count` even segments of each row's n real tokens, as the teacher's port `hidden.<l>.mean<count>`.

    Segment j is [floor(j n / count), ceil((j + 1) n / count)), so none is empty; a row without a real token gives
    zeros and a mask of False.
    """
    mask, rank = states.mask, states.mask.cumsum(1) - 1
    length = mask.sum(1, keepdim=True)
    segments = [
        mask & (rank >= j * length // count) & (rank < ((j + 1) * length + count - 1) // count) for j in range(count)
    ]
    hidden = torch.stack([pooled(states.hidden, segment) for segment in segments], dim=1)  # [batch, count, width]
    return States(hidden, mask.any(1, keepdim=True).expand(-1, count))


def linear(width_in: int, width_out: int, generator: torch.Generator) -> nn.Linear:
    """A linear layer with PyTorch's own initial weights, drawn from `generator` alone."""
    with torch.device("meta"):
        layer = nn.Linear(width_in, width_out)
    layer = layer.to_empty(device="cpu")
    bound = 1 / math.sqrt(width_in)
    for parameter in (layer.weight, layer.bias):
        nn.init.uniform_(parameter, -bound, bound, generator=generator)
    return layer
