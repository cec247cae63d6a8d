"""What every student is: states at its cuts, a head, and where it can be run layer by layer; knows no teacher and no method."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from task_data.splits import Task
from teaching_protocol.errors import DataError

__all__ = ["Columns", "LayeredStudent", "States", "Student", "Tensors", "Trace"]

Columns = Mapping[str, Sequence[str] | torch.Tensor]
"""The student's raw view of N examples: `text`, `user` and `item`, or `image` (see `task_data.Split`)."""

Tensors = Mapping[str, torch.Tensor]
"""Input tensors by name, N examples first."""


@dataclass(frozen=True)
class States:
    """Hidden states [batch, tokens, width] and the mask [batch, tokens] bool of real tokens."""

    hidden: torch.Tensor
    mask: torch.Tensor


@dataclass(frozen=True)
class Trace:
    """What a student makes of a batch: its states at every cut, 0 to `layers`, and its outputs."""

    states: Sequence[States]
    outputs: torch.Tensor


class Student(nn.Module, ABC):
    """A model whose hidden states can be read at its cuts. It runs alone at inference.

    Cut 0 lies before the first layer, cut l behind layer l.
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

    def spans(self, texts: Sequence[str]) -> Sequence[Sequence[tuple[int, int]]]:
        """Where each token of `view` lies in its text: its first character and the one behind its last; (0, 0) of none.

        Raises:
            DataError: the student does not read text.
        """
        raise DataError(f"{type(self).__name__} reads {', '.join(self.inputs)} and no text; its data has no tokens")

    @property
    def vocabulary_size(self) -> int:
        """How many tokens a student of next tokens predicts; 0 of any other."""
        return 0

    @property
    def tokenizer_hash(self) -> str:
        """What its tokenizer does to a text, as a teacher's card has it; empty where there is none to compare."""
        return ""

    @abstractmethod
    def trace(self, inputs: Tensors) -> Trace:
        """Runs the student alone, and keeps what lies at its cuts."""

    @abstractmethod
    def head(self, states: States) -> torch.Tensor:
        """g_out: [batch, outputs] logits, or [batch] predicted targets; it pools the states itself.

        Of a task with labels for tokens [batch, tokens, outputs], and it pools nothing.
        """

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Writes the student alone, loadable by `load_student(folder)`."""

    def forward(self, inputs: Tensors) -> torch.Tensor:
        """The student alone."""
        return self.trace(inputs).outputs


class LayeredStudent(Student):
    """A student whose layers can be run one by one, on states of any origin: y = head(upper(lower(x)))."""

    @abstractmethod
    def embed(self, inputs: Tensors) -> States:
        """The states at cut 0."""

    @abstractmethod
    def run(self, states: States, start: int, stop: int) -> States:
        """Layers `start` to `stop` - 1: from the states at cut `start` to those at cut `stop`."""

    def trace(self, inputs: Tensors) -> Trace:
        """The states at every cut, layer by layer, and what the head makes of the last."""
        states = [self.embed(inputs)]
        for layer in range(self.layers):
            states.append(self.run(states[-1], layer, layer + 1))
        return Trace(states, self.head(states[-1]))

    def lower(self, inputs: Tensors) -> States:
        """g_low(x): the states at the entry tap."""
        return self.run(self.embed(inputs), 0, self.cut)

    def upper(self, states: States) -> States:
        """g_up: from the entry tap's states to the last layer's."""
        return self.run(states, self.cut, self.layers)

    def forward(self, inputs: Tensors) -> torch.Tensor:
        """The student alone."""
        return self.head(self.upper(self.lower(inputs)))
