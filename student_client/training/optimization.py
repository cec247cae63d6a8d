"""One optimizer step of both sides on one schedule; knows no data, no loss and no file.

Loss scaling (fp16): the teacher's codec gathers gradients of the scaled loss, so its step divides by the scale they
were made with. A step that the scaler skips is a step of nothing over there, with learning rate and gradients times 0:
what was gathered is gone, and the step numbers of both sides stay equal. A teacher that refuses a gradient because it
overflowed is an overflow like any other: the student's gradients are made infinite, and the scaler skips.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator

from student_client.config import RunConfig, TrainingConfig
from student_client.training.conversation import Conversation, clipped, overflow
from student_client.training.moments import load_moments, moments, parameters_of
from teaching_protocol.errors import NonFiniteError

__all__ = ["JointOptimizer", "schedule_factor"]

Tensors = Mapping[str, torch.Tensor]


class JointOptimizer:
    """AdamW over the student, and behind it the step of its conversation: codecs here and at the teachers.

    Each is clipped on its own: a codec's gradient never shortens the student's step.

    Args:
        config: of the run.
        accelerator: accumulates microbatches and scales losses.
        conversation: of the student with its teachers.
        total_steps: of the run, which the schedule spans.
    """

    def __init__(
        self, config: RunConfig, accelerator: Accelerator, conversation: Conversation, total_steps: int
    ) -> None:
        self._training, self._total_steps = config.training, total_steps
        self._accelerator, self._conversation = accelerator, conversation
        self._teacher_lr = config.training.lr
        if config.teacher is not None and config.teacher.lr is not None:
            self._teacher_lr = config.teacher.lr
        self._optimizer = accelerator.prepare_optimizer(
            torch.optim.AdamW(
                conversation.student.parameters(), lr=config.training.lr, weight_decay=config.training.weight_decay
            )
        )

    def backward(self, loss: torch.Tensor) -> None:
        """Gradients of one microbatch's loss, on both sides.

        Raises:
            NonFiniteError: the teacher refuses a gradient, and there is no loss scale to lower.
        """
        try:
            self._accelerator.backward(loss)
        except NonFiniteError:
            if self._accelerator.scaler is None:
                raise
            overflow(parameters_of(self._optimizer))

    def step(self, done: int, part: tuple[int, int] = (1, 1)) -> dict[str, float]:
        """Applies the gathered gradients of both sides as step `done` + 1; gives their norms before clipping.

        Args:
            done: steps done before.
            part: rows of this rank and of all: with several ranks the mean over them is applied at each.

        Raises:
            NonFiniteError: a gradient that is no number, and there is no loss scale to lower.
        """
        factor = schedule_factor(self._training, done, self._total_steps)
        scaler = self._accelerator.scaler
        scale = 1.0 if scaler is None else float(scaler.get_scale())
        rows, whole = part
        self._conversation.average(parameters_of(self._optimizer), rows / whole)
        if scaler is not None and self._conversation.has_overflowed():
            overflow(parameters_of(self._optimizer))
        norms = self._clip()
        for group in self._optimizer.param_groups:
            group["lr"] = self._training.lr * factor
        self._optimizer.step()
        self._optimizer.zero_grad()
        return norms | self._conversation.step(
            self._training.lr * factor,
            teacher_lr=self._teacher_lr * factor,
            grad_scale=1.0 / scale,
            max_grad_norm=self._training.max_grad_norm,
            rows=rows,
            is_skipped=bool(self._optimizer.step_was_skipped),
        )

    def let_go(self) -> None:
        """Forgets the gathered gradients of student and codec."""
        for parameter in parameters_of(self._optimizer):
            parameter.grad = None
        self._conversation.let_go()

    def tensors(self) -> dict[str, torch.Tensor]:
        """The moments of all parameters, flat: the student's, then its codec's."""
        return moments(self._optimizer) | self._conversation.moments(len(parameters_of(self._optimizer)))

    def load(self, tensors: Tensors, facts: Mapping[str, Any]) -> None:
        """Puts back what `tensors` and `facts` gave.

        Raises:
            StateMismatch: moments of other parameters.
        """
        count = len(parameters_of(self._optimizer))
        own = {name: value for name, value in tensors.items() if int(name.partition(".")[0]) < count}
        load_moments(self._optimizer, own)
        self._conversation.load_moments(tensors, count)
        if self._accelerator.scaler is not None and facts["scaler"]:
            self._accelerator.scaler.load_state_dict(facts["scaler"])

    def facts(self) -> dict[str, Any]:
        """The loss scale and its counters under `scaler`; empty without loss scaling."""
        scaler = self._accelerator.scaler
        return {"scaler": {} if scaler is None else dict(scaler.state_dict())}

    def _clip(self) -> dict[str, float]:
        self._accelerator.unscale_gradients()
        return clipped(
            "grad_norm", parameters_of(self._optimizer), self._training.max_grad_norm, self._accelerator.scaler is None
        )


def schedule_factor(training: TrainingConfig, done: int, total_steps: int) -> float:
    """What the peak learning rates of both sides are multiplied with after `done` of `total_steps` steps.

    A linear rise over the warm-up, then a linear or a cosine fall that would reach 0 at `total_steps`, or none.
    """
    if done < training.warmup_steps:
        return (done + 1) / training.warmup_steps
    passed = (done - training.warmup_steps) / max(1, total_steps - training.warmup_steps)
    if training.schedule == "linear":
        return max(0.0, 1.0 - passed)
    return 1.0 if training.schedule == "constant" else 0.5 * (1.0 + math.cos(math.pi * min(1.0, passed)))
