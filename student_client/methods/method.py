"""What a method of distillation is: loss terms on one batch; knows no optimizer and no loop."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from student_client.losses import task_loss
from student_client.method_config import MethodConfig
from student_client.teachers.pausing import Pausing, finished
from student_client.teachers.teachers import Teachers
from student_models import States, Student
from task_data import Batch, Task
from teaching_protocol.verbs import DescribeReply

__all__ = ["Asking", "Context", "Method", "Methods", "Outcome", "Seen", "Terms"]


@dataclass(frozen=True)
class Context:
    """What a method is built from: the student it serves, and the cards of the run's teachers, the foundation first."""

    config: MethodConfig
    student: Student
    cards: tuple[DescribeReply, ...]
    seed: int


@dataclass(frozen=True)
class Seen:
    """What the student makes of a batch: its states at every cut, 0 to `student.layers`, and y = g_out(H^g_u)."""

    student: Student
    states: Sequence[States]
    outputs: torch.Tensor

    @property
    def lower(self) -> States:
        """H^g_l, at the entry tap."""
        return self.states[self.student.cut]

    @property
    def upper(self) -> States:
        """H^g_u, at the exit tap."""
        return self.states[-1]

    @property
    def is_multi_label(self) -> bool:
        """Whether each class is true or not by itself: losses on predictions then compare sigmoids."""
        return self.student.task.is_multi_label


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
    """The loss to go backward from, its parts as numbers before weighting, and monitors; `part` is that of its batch."""

    loss: torch.Tensor
    parts: Mapping[str, torch.Tensor]
    monitors: Mapping[str, float]
    part: tuple[int, int] = (1, 1)


class Method(nn.Module, ABC):
    """One method: terms beside the task loss. Its own parameters are trained with the student's.

    Args:
        context: what it is built from; what it draws, it draws from `context.seed`.

    Raises:
        IncompatibleTeacher: a teacher does not serve what the method needs; the text names the port.
    """

    needs_teacher = True
    """Whether it asks the foundation teacher."""
    asks_all = False
    """Whether it asks the complementary teachers too."""
    converses = False
    """Whether it sends messages, so that a codec is trained at the teacher; see `converses_under`."""
    uses_unlabelled = True
    """Whether rows without a label teach anything."""
    bears_missing = False
    """Whether it goes on while a teacher is missing, and needs no card of one that was never there."""
    replaces_task = False
    """Whether the task loss is among its own terms, so that it is not added beside them."""
    predicts_rows = False
    """Whether it reads the student's outputs as one prediction a row, so that it suits no task with labels for tokens."""

    def __init__(self, context: Context) -> None:
        super().__init__()
        self.config, self.seed = context.config, context.seed

    @classmethod
    def converses_under(cls, config: MethodConfig) -> bool:
        """Whether it sends messages with these settings."""
        return cls.converses

    @classmethod
    def unsuited(cls, config: MethodConfig, task: Task) -> str:
        """Why it makes no sense for a task with these settings, and what to do; empty where it does."""
        if cls.predicts_rows and task.level != "row":
            return (
                "whose labels are those of tokens: it reads one prediction a row; use soft_labels, fitnets, rkd, pkd, minilm, "
                "one_way or talking"
            )
        return ""

    @classmethod
    def compares_tokens(cls, config: MethodConfig, task: Task) -> bool:
        """Whether teachers must read the student's own tokens, so that each can be compared with the same one of theirs."""
        return False

    @property
    def is_active(self) -> bool:
        """Whether any of its terms has a weight, so that the teacher is asked at all."""
        return True

    @property
    def observed(self) -> Mapping[int, tuple[str, ...]]:
        """Output ports it wants to know of every batch, by the teacher's place: they are fetched ahead."""
        return {}

    @abstractmethod
    def terms(self, seen: Seen, batch: Batch, teachers: Teachers) -> Terms:
        """The method's terms on a batch."""

    def pausing_terms(self, seen: Seen, batch: Batch, teachers: Teachers) -> Pausing[Terms]:
        """`terms`, with a pause wherever a teacher's answer is under way.

        What comes before the first pause of a microbatch may be done before the rest of the one before it. What changes a
        state that the next microbatch goes on with is therefore always before the first pause, or always behind one.
        """
        yield from ()
        return self.terms(seen, batch, teachers)


class Asking(Method):
    """A method that asks within a step: it says in `pausing_terms` where it waits for an answer."""

    def terms(self, seen: Seen, batch: Batch, teachers: Teachers) -> Terms:
        """The method's terms on a batch."""
        return finished(self.pausing_terms(seen, batch, teachers))

    @abstractmethod
    def pausing_terms(self, seen: Seen, batch: Batch, teachers: Teachers) -> Pausing[Terms]:
        """`terms`, with a pause wherever a teacher's answer is under way; see `Method.pausing_terms`."""


class Methods(nn.Module):
    """Methods composed: L = L_task + the weighted terms of each. None of them is task only.

    L_task is left out where a method replaces it.
    """

    def __init__(self, methods: Mapping[str, Method]) -> None:
        super().__init__()
        self.methods = nn.ModuleDict(methods)

    @property
    def uses_unlabelled(self) -> bool:
        """Whether rows without a label teach anything."""
        return any(method.uses_unlabelled for method in self._active())

    @property
    def observed(self) -> dict[int, tuple[str, ...]]:
        """What all methods want to know of every batch, by the teacher's place."""
        wanted: dict[int, tuple[str, ...]] = {}
        for method in self._active():
            for place, ports in method.observed.items():
                known = wanted.get(place, ())
                wanted[place] = known + tuple(port for port in ports if port not in known)
        return wanted

    def loss(self, student: Student, batch: Batch, teachers: Teachers) -> Outcome:
        """The loss of one batch: task loss on its labelled rows unless it is replaced, and every method's terms."""
        return finished(self.pausing_loss(student, batch, teachers))

    def pausing_loss(
        self,
        student: Student,
        batch: Batch,
        teachers: Teachers,
        seen: Seen | None = None,
        task: torch.Tensor | None = None,
    ) -> Pausing[Outcome]:
        """`loss`, with a pause wherever a teacher's answer is under way.

        Args:
            student: is run, unless it has been.
            batch: of labelled and unlabelled rows.
            teachers: are asked.
            seen: what the student has made of the batch, if it was run before.
            task: a task loss of another making, in place of ours.
        """
        if seen is None:
            trace = student.trace(batch.inputs)
            seen = Seen(student, trace.states, trace.outputs)
        if task is None:
            task = task_loss(seen.outputs, batch.labels, batch.labelled)
        loss, parts, monitors = task, {"task": task.detach()}, dict[str, float]()
        if any(method.replaces_task for method in self._active()):
            loss, parts = task * 0.0, {}  # still connected, where no term is
        for method in self._active():
            terms = yield from method.pausing_terms(seen, batch, teachers)
            monitors |= terms.monitors
            for name, (weight, term) in terms.losses.items():
                loss = loss + weight * term
                parts[name] = term.detach()
        return Outcome(loss, parts, monitors, batch.part)

    def _active(self) -> Sequence[Method]:
        return [method for method in self.methods.values() if isinstance(method, Method) and method.is_active]
