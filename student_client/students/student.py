"""What every student is: lower layers, upper layers, a head; knows no teacher and no method."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from student_client.data.splits import Split, Task

__all__ = ["States", "Student", "Tensors"]

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class States:
    """Hidden states [batch, tokens, width] and the mask [batch, tokens] bool of real tokens."""

    hidden: torch.Tensor
    mask: torch.Tensor


class Student(nn.Module, ABC):
    """A model cut at one layer: y = head(upper(lower(x))). It runs alone at inference."""

    width: int
    """Width of the hidden states at both taps, d_g."""
    task: Task
    """What it predicts: the classes in the order of its logits, or none for a regression."""

    @abstractmethod
    def view(self, split: Split) -> Tensors:
        """The student's input tensors for all N examples of a split, N first (`attention_mask` where padded)."""

    @abstractmethod
    def lower(self, inputs: Tensors) -> States:
        """g_low(x): the states at the entry tap."""

    @abstractmethod
    def upper(self, states: States) -> States:
        """g_up: from the entry tap's states to the exit tap's."""

    @abstractmethod
    def head(self, states: States) -> torch.Tensor:
        """g_out: [batch, outputs] logits, or [batch] predicted targets. Pools the states itself."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Writes the student alone, loadable by `load_student(folder)`."""

    def forward(self, inputs: Tensors) -> torch.Tensor:
        """The student alone."""
        return self.head(self.upper(self.lower(inputs)))
