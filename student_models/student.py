"""What every student is: embedding, layers cut in the middle, a head; knows no teacher and no method."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from task_data.splits import Task

__all__ = ["Columns", "States", "Student", "Tensors"]

Columns = Mapping[str, Sequence[str] | torch.Tensor]
"""The student's raw view of N examples: `text`, `user` and `item`, or `image` (see `task_data.Split`)."""

Tensors = Mapping[str, torch.Tensor]
"""Input tensors by name, N examples first."""


@dataclass(frozen=True)
class States:
    """Hidden states [batch, tokens, width] and the mask [batch, tokens] bool of real tokens."""

    hidden: torch.Tensor
    mask: torch.Tensor


class Student(nn.Module, ABC):
    """A model cut at one layer: y = head(upper(lower(x))). It runs alone at inference.

    It may be cut at every layer: cut 0 lies behind the embedding, cut l behind layer l. `cut` is where lower ends.
    """

    width: int
    """Width of the hidden states at every cut, d_g."""
    layers: int
    """Number of layers."""
    task: Task
    """What it predicts: the classes in the order of its logits, or none for a regression."""
    inputs: tuple[str, ...]
    """Names of the raw columns it reads."""

    @property
    def cut(self) -> int:
        """Where the entry tap lies: half of the layers are below it."""
        return self.layers // 2

    @abstractmethod
    def view(self, columns: Columns) -> Tensors:
        """The student's input tensors for N examples, N first (`attention_mask` where padded)."""

    @abstractmethod
    def embed(self, inputs: Tensors) -> States:
        """The states at cut 0."""

    @abstractmethod
    def run(self, states: States, start: int, stop: int) -> States:
        """Layers `start` to `stop` - 1: from the states at cut `start` to those at cut `stop`."""

    @abstractmethod
    def head(self, states: States) -> torch.Tensor:
        """g_out: [batch, outputs] logits, or [batch] predicted targets. Pools the states itself."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Writes the student alone, loadable by `load_student(folder)`."""

    def lower(self, inputs: Tensors) -> States:
        """g_low(x): the states at the entry tap."""
        return self.run(self.embed(inputs), 0, self.cut)

    def upper(self, states: States) -> States:
        """g_up: from the entry tap's states to the last layer's."""
        return self.run(states, self.cut, self.layers)

    def forward(self, inputs: Tensors) -> torch.Tensor:
        """The student alone."""
        return self.head(self.upper(self.lower(inputs)))
