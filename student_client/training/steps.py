"""Optimizer steps of one student and its teachers, one after the other; knows no validation, no file and no clock."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator

from student_client.config import RunConfig
from student_client.methods import Methods, Outcome
from student_client.teachers.pausing import Pausing
from student_client.teachers.teachers import Teachers
from student_client.training.acceleration import RandomNumbers
from student_client.training.ahead import Ahead
from student_client.training.conversation import Conversation
from student_client.training.microbatches import Line, Microbatch
from student_client.training.optimization import JointOptimizer
from student_client.training.stream import Stream
from student_models import Student
from task_data import RowStream, Split
from teaching_protocol.errors import NonFiniteError

__all__ = ["Steps"]

_SEEDS = 2**62


class Steps:
    """What a step needs, put together: the batches, the loss, both optimizers.

    Args:
        config: of the run.
        train: the training rows, in memory or as a stream.
        student: trained in place.
        method: trained with it.
        teachers: enrolled, or none.
        accelerator: places student and method.
    """

    def __init__(
        self,
        config: RunConfig,
        train: Split | RowStream,
        student: Student,
        method: Methods,
        teachers: Teachers,
        accelerator: Accelerator,
    ) -> None:
        self.accelerator, self.teachers, self._ranks = accelerator, teachers, teachers.ranks
        self.student: Student = student.to(accelerator.device)
        self.method: Methods = method.to(accelerator.device)
        whole = method.uses_unlabelled
        training = config.training if whole else config.training.model_copy(update={"labelled_share": 1.0})
        ports = sorted({port for member in teachers.members for port in member.ports})
        rank = self._ranks.rank, self._ranks.count
        self.stream = Stream(train, student, training, ports, accelerator.device, rank)
        self.batches = Ahead(self.stream, teachers, method.observed)
        self.total = _total(config, self.stream.epoch_batches)
        """Steps of the whole run, which the schedule spans."""
        self.conversation = Conversation(self.student, self.method, teachers, config.training.weight_decay)
        self.optimizer = JointOptimizer(config, accelerator, self.conversation, self.total)
        self._microbatches = config.training.accumulation
        self._overlaps = config.training.pipeline and self._microbatches > 1 and teachers.converse and len(teachers) > 0

    def take(self, done: int, watch: Callable[[Outcome], None]) -> dict[str, float]:
        """One step of both sides as step `done` + 1: the diagram of docs/architecture.md, from the student's end.

        Args:
            done: steps done before.
            watch: is shown every microbatch's outcome.

        Returns:
            numbers to watch, such as gradient norms.

        Raises:
            NonFiniteError: a loss or gradient that is no number.
            TeachingError: the teacher cannot go on.
        """
        waited_s = self.teachers.wait_s
        with self._line(done) as line:
            for microbatch in line:
                outcome = microbatch.finish()
                self._check(outcome, done)
                with self.accelerator.accumulate(self.method):
                    self.optimizer.backward(self._weighed(outcome))
                watch(outcome)
        self._ranks.hear()  # before gradients are averaged
        part = outcome.part if self._microbatches == 1 else (1, self._ranks.count)
        monitors = self.optimizer.step(done, part)
        if self.teachers:
            monitors |= {"teacher_latency_s": self.teachers.wait_s - waited_s}
        return monitors

    def _weighed(self, outcome: Outcome) -> torch.Tensor:
        """The loss to go backward from: of several ranks' microbatches, each counts by its part of its whole batch.

        With one microbatch the parts weigh where the ranks' gradients are averaged, at both sides.
        """
        if self._ranks.count == 1 or self._microbatches == 1:
            return outcome.loss
        rows, whole = outcome.part
        return outcome.loss * (rows * self._ranks.count / whole)

    def let_go(self) -> None:
        """Forgets the gradients of a step that was begun and not finished."""
        self.optimizer.let_go()
        self.accelerator.step = 0  # microbatches counted

    @contextmanager
    def _line(self, done: int) -> Iterator[Line]:
        """The microbatches of step `done` + 1; with several, the teachers have the next question before they need it."""
        count = self._microbatches
        alone = count == 1  # then it draws from torch's generators as they stand
        seeds = [None] if alone else torch.randint(_SEEDS, (count,)).tolist()
        microbatches = [
            Microbatch(
                self._loss(last=done + 1 >= self.total and number == count),
                self.accelerator.autocast,
                None if seed is None else RandomNumbers(seed),
            )
            for number, seed in enumerate(seeds, start=1)
        ]
        with Line(microbatches, self._overlaps) as line:
            if not self._overlaps:
                yield line
                return
            # a GPU's backward runs in a thread of autograd's own, where a forward would number its operations anew
            is_exact = self.accelerator.device.type == "cpu"
            with self.teachers.overlapping(line.look_ahead if is_exact else _nothing):
                yield line

    def _loss(self, last: bool) -> Pausing[Outcome]:
        """The next batch and its loss."""
        return (yield from self.conversation.pausing_loss(self.batches.next(last)))

    def _check(self, outcome: Outcome, done: int) -> None:
        if self.accelerator.scaler is None and not torch.isfinite(outcome.loss):
            values = ", ".join(f"{name} {float(value):g}" for name, value in outcome.parts.items())
            raise NonFiniteError(
                f"step {done + 1}: the loss is {outcome.loss.item()} ({values}), expected a number; "
                "lower training.lr, or the weight of the part that grew"
            )


def _nothing() -> None:
    """For who must not begin early."""


def _total(config: RunConfig, epoch_batches: int) -> int:
    training = config.training
    return training.max_steps or max(1, training.epochs * epoch_batches // training.accumulation)
