"""How much of each row's message is heard; knows no message and no teacher."""

from __future__ import annotations

import torch
from torch import nn

from student_client.method_config import MethodConfig

__all__ = ["MessageGate"]

_PRIME = 1_000_003  # spreads seeds of runs apart


class MessageGate(nn.Module):
    """Draws the input port `message_gate`: `question_scale`, and 0 for rows whose message is dropped and for
    all rows of the first `silent_steps` calls.

    Ours: it breaks the shortcut by which an answer passes the student's memory of its few labels back to it. What is
    drawn depends on the seed and the number of calls alone, which goes on from a checkpoint.
    """

    calls: torch.Tensor

    def __init__(self, config: MethodConfig, seed: int) -> None:
        super().__init__()
        self._dropout, self._scale, self._seed = config.message_dropout, config.question_scale, seed
        self._silent = config.silent_steps
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, rows: torch.Tensor) -> torch.Tensor | None:
        """[batch] for `rows` [batch, ...], in its dtype and place; None where every message is heard as it is."""
        if not self._dropout and self._scale == 1.0 and not self._silent:
            return None
        self.calls += 1
        if self.calls <= self._silent:
            return rows.new_zeros(len(rows))
        source = torch.Generator().manual_seed(self._seed * _PRIME + int(self.calls))
        kept = torch.rand(len(rows), generator=source) >= self._dropout
        return kept.to(rows.device, rows.dtype) * self._scale
