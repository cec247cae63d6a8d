"""What a method of distillation is: loss terms on one batch; knows no optimizer and no loop."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from student_client.losses import task_loss
from student_client.remote import Teacher
from student_models import States, Student
from task_data import Batch

__all__ = ["Method", "Methods", "Outcome", "Seen", "Terms", "needed"]


@dataclass(frozen=True)
class Seen:
    """What the student makes of a batch: H^g_l, H^g_u and y = g_out(H^g_u)."""

    student: Student
    lower: States
    upper: States
    outputs: torch.Tensor


@dataclass
class Terms:
    """Loss terms by name, each with its weight, and numbers to watch."""

    losses: dict[str, tuple[float, torch.Tensor]] = field(default_factory=dict)
    monitors: dict[str, float] = field(default_factory=dict)

    def add(self, name: str, weight: float, loss: torch.Tensor) -> None:
        """Adds a term; one with weight 0 is left out, so that it moves nothing, not even a sign of zero."""
        if weight:
            self.losses[name] = (weight, loss)


@dataclass(frozen=True)
class Outcome:
    """The loss to go backward from, its parts as numbers before weighting, and monitors."""

    loss: torch.Tensor
    parts: Mapping[str, torch.Tensor]
    monitors: Mapping[str, float]


class Method(nn.Module, ABC):
    """One method: terms beside the task loss. Its own parameters are trained with the student's."""

    needs_teacher = False
    uses_unlabelled = False

    @abstractmethod
    def terms(self, seen: Seen, batch: Batch, teacher: Teacher | None) -> Terms:
        """The method's terms on a batch."""


class Methods(nn.Module):
    """Methods composed: L = L_task + the weighted terms of each. None of them is task only."""

    def __init__(self, methods: Mapping[str, Method]) -> None:
        super().__init__()
        self.methods = nn.ModuleDict(methods)

    @property
    def needs_teacher(self) -> bool:
        """Whether any term asks a teacher."""
        return any(method.needs_teacher for method in self._each())

    @property
    def uses_unlabelled(self) -> bool:
        """Whether rows without a label teach anything."""
        return any(method.uses_unlabelled for method in self._each())

    def loss(self, student: Student, batch: Batch, teacher: Teacher | None) -> Outcome:
        """The loss of one batch: task loss on its labelled rows, and every method's terms."""
        lower = student.lower(batch.inputs)
        upper = student.upper(lower)
        seen = Seen(student, lower, upper, student.head(upper))
        task = task_loss(seen.outputs, batch.labels, batch.labelled)
        loss, parts = task, {"task": task.detach()}
        monitors: dict[str, float] = {}
        for method in self._each():
            terms = method.terms(seen, batch, teacher)
            monitors |= terms.monitors
            for name, (weight, term) in terms.losses.items():
                loss = loss + weight * term
                parts[name] = term.detach()
        return Outcome(loss, parts, monitors)

    def _each(self) -> Sequence[Method]:
        return [method for method in self.methods.values() if isinstance(method, Method)]


def needed(teacher: Teacher | None) -> Teacher:
    """The teacher of a method that cannot do without."""
    assert teacher is not None, "the trainer connects a teacher for methods that need one"
    return teacher
