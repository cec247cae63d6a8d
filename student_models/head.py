"""The student's head: states, pooled or token by token, to logits or to a target; knows no modality."""

from __future__ import annotations

import torch
from torch import nn

from student_models.student import States
from task_data.splits import Task

__all__ = ["PooledHead", "TokenHead", "head_for"]


def head_for(width: int, task: Task, dropout: float) -> PooledHead | TokenHead:
    """The head of a task: a prediction for each row, or for each token."""
    head = PooledHead if task.level == "row" else TokenHead
    return head(width, task, dropout)


class PooledHead(nn.Module):
    """Masked mean over tokens, dropout, one linear layer; a predicted target starts at `centre`.

    Args:
        width: of the states.
        task: decides the outputs.
        dropout: on the pooled states.
    """

    centre: torch.Tensor

    def __init__(self, width: int, task: Task, dropout: float) -> None:
        super().__init__()
        self.is_regression = task.is_regression
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(width, task.outputs)
        self.register_buffer("centre", torch.zeros(()))

    def forward(self, states: States) -> torch.Tensor:
        """States [batch, tokens, width] -> [batch, outputs] logits, or [batch] predicted targets."""
        hidden = states.hidden.masked_fill(~states.mask[..., None], 0.0)
        pooled = hidden.sum(1) / states.mask.sum(1, keepdim=True).clamp(min=1)  # [batch, width]
        outputs: torch.Tensor = self.linear(self.dropout(pooled))
        return outputs.squeeze(-1) + self.centre if self.is_regression else outputs


class TokenHead(nn.Module):
    """Dropout and one linear layer, token by token; arguments as of `PooledHead`."""

    centre: torch.Tensor

    def __init__(self, width: int, task: Task, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(width, task.outputs)
        self.register_buffer("centre", torch.zeros(()), persistent=False)  # of targets, which tokens have not

    def forward(self, states: States) -> torch.Tensor:
        """States [batch, tokens, width] -> [batch, tokens, outputs] logits."""
        outputs: torch.Tensor = self.linear(self.dropout(states.hidden))
        return outputs
