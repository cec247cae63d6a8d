"""A student and its teachers in any training loop: a loss for each batch, a step behind each of the student's; knows no loop.

Loss scaling (fp16): all gradients are those of the scaled loss, so `step` is told what to multiply them with. A step that
the scaler skips is a step of nothing at the teachers, with learning rate and gradients times 0: what was gathered is
gone, and the step numbers of both sides stay equal.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import nn

from student_client.methods import Methods, Outcome
from student_client.methods.method import Seen
from student_client.teachers.pausing import Pausing, finished
from student_client.teachers.teachers import Teachers
from student_client.training.moments import load_moments, moments
from student_models import Student, Trace
from task_data import Batch
from teaching_protocol.errors import NonFiniteError

__all__ = ["Conversation", "clipped", "overflow"]

Tensors = Mapping[str, torch.Tensor]


class Conversation:
    """What a method makes of a student and its teachers. The student's own optimizer is the loop's.

    Args:
        student: run by the loop or by `loss`.
        method: with the student-side codec, on the student's device; AdamW trains it here.
        teachers: enrolled, or none.
        weight_decay: of the student-side codec.
    """

    def __init__(self, student: Student, method: Methods, teachers: Teachers, weight_decay: float = 0.01) -> None:
        self.student, self.method, self.teachers = student, method, teachers
        parameters = list(method.parameters())
        self._optimizer = torch.optim.AdamW(parameters, weight_decay=weight_decay) if parameters else None

    def loss(self, batch: Batch, trace: Trace | None = None, task: torch.Tensor | None = None) -> Outcome:
        """The loss of one batch, to go backward from.

        Args:
            batch: with the teachers' view of it.
            trace: what the student has made of it; None runs the student.
            task: a task loss of the loop's own; None takes cross-entropy or the squared error of the labelled rows.

        Raises:
            TeachingError: a teacher refuses, or stays away.
        """
        return finished(self.pausing_loss(batch, trace, task))

    def pausing_loss(
        self, batch: Batch, trace: Trace | None = None, task: torch.Tensor | None = None
    ) -> Pausing[Outcome]:
        """`loss`, with a pause wherever a teacher's answer is under way."""
        seen = None if trace is None else Seen(self.student, trace.states, trace.outputs)
        return (yield from self.method.pausing_loss(self.student, batch, self.teachers, seen, task))

    def step(
        self,
        lr: float,
        *,
        teacher_lr: float | None = None,
        grad_scale: float = 1.0,
        max_grad_norm: float = 1.0,
        rows: int = 0,
        is_skipped: bool = False,
    ) -> dict[str, float]:
        """Applies what the codecs of all sides have gathered since the last step; gives their norms before clipping.

        Args:
            lr: learning rate of this step.
            teacher_lr: that of the teacher-side codecs; None is the same.
            grad_scale: what gathered gradients are multiplied with: 1 / loss scale.
            max_grad_norm: largest norm of each codec on its own; 0 clips nothing.
            rows: of this rank, where several share the sessions.
            is_skipped: whether the student's step was skipped, so that this one does nothing but count.

        Raises:
            NonFiniteError: a gradient that is no number.
            TeachingError: a teacher refuses, or stays away.
        """
        if is_skipped:
            self.let_go()
            self.teachers.step(lr=0.0, grad_scale=0.0, max_grad_norm=max_grad_norm, rows=rows)
            return {}
        norms = self._step_codec(lr, grad_scale, max_grad_norm)
        return norms | self.teachers.step(lr if teacher_lr is None else teacher_lr, grad_scale, max_grad_norm, rows)

    def average(self, parameters: Sequence[nn.Parameter], share: float) -> None:
        """Where several ranks train one student: the mean of their gradients in the place of each one's, codec and all.

        Args:
            parameters: of the student.
            share: of this rank in the mean.
        """
        self.teachers.ranks.average([*parameters, *self.method.parameters()], share)

    def has_overflowed(self) -> bool:
        """Whether a gradient of the student-side codec is no number; waits for the device."""
        found = [parameter.grad for parameter in self.method.parameters() if parameter.grad is not None]
        return not math.isfinite(float(nn.utils.get_total_norm(found)))

    def let_go(self) -> None:
        """Forgets the gradients of the student-side codec."""
        for parameter in self.method.parameters():
            parameter.grad = None

    def moments(self, first: int = 0) -> dict[str, torch.Tensor]:
        """The moments of the student-side codec, flat, places counted from `first`."""
        return {} if self._optimizer is None else moments(self._optimizer, first)

    def load_moments(self, tensors: Tensors, first: int = 0) -> None:
        """Puts back what `moments` gave.

        Raises:
            StateMismatch: moments of other parameters.
        """
        if self._optimizer is not None:
            load_moments(self._optimizer, tensors, first)

    def _step_codec(self, lr: float, grad_scale: float, max_grad_norm: float) -> dict[str, float]:
        for parameter in self.method.parameters():
            if parameter.grad is not None and grad_scale != 1.0:
                parameter.grad.mul_(grad_scale)
        norms = clipped("codec_grad_norm", self.method.parameters(), max_grad_norm)
        if self._optimizer is not None:
            for group in self._optimizer.param_groups:
                group["lr"] = lr
            self._optimizer.step()
            self._optimizer.zero_grad()
        return norms


def clipped(
    name: str, parameters: Iterable[nn.Parameter], max_grad_norm: float, is_final: bool = True
) -> dict[str, float]:
    """Clips the gradients of some parameters together; gives {name: their norm before}, or nothing where it is no number.

    Args:
        name: of the norm.
        parameters: those without a gradient are left out.
        max_grad_norm: 0 clips nothing.
        is_final: whether a norm that is no number is an error, and not left to a loss scaler.

    Raises:
        NonFiniteError: a norm that is no number.
    """
    given = [parameter for parameter in parameters if parameter.grad is not None]
    norm = float(nn.utils.clip_grad_norm_(given, max_grad_norm or math.inf))
    if math.isfinite(norm):
        return {name: norm}
    if is_final:
        raise NonFiniteError(
            f"{name}: received {norm}, expected a number; lower the learning rate, or set a largest gradient norm "
            "(training.max_grad_norm)"
        )
    return {}


def overflow(parameters: Iterable[nn.Parameter]) -> None:
    """Makes gradients infinite: a loss scaler then skips the step, and lowers its scale."""
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, math.inf)
