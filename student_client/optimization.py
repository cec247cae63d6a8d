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
from torch import nn

from student_client.config import RunConfig, TrainingConfig
from student_client.teachers import Teachers
from teaching_protocol.errors import NonFiniteError, StateMismatch

__all__ = ["JointOptimizer", "schedule_factor"]

Tensors = Mapping[str, torch.Tensor]


class JointOptimizer:
    """AdamW over the student and its codec, and the teacher's optimizer over the wire.

    The student and the codec are clipped each on its own, and the teacher clips its codec itself: a codec's gradient
    never shortens the student's step.

    Args:
        config: of the run.
        accelerator: accumulates microbatches and scales losses.
        student: the student.
        method: with the codec.
        teachers: enrolled, or none.
        total_steps: of the run, which the schedule spans.
    """

    def __init__(
        self,
        config: RunConfig,
        accelerator: Accelerator,
        student: nn.Module,
        method: nn.Module,
        teachers: Teachers,
        total_steps: int,
    ) -> None:
        self._training, self._total_steps = config.training, total_steps
        self._accelerator, self._teachers = accelerator, teachers
        self._modules = {"grad_norm": student, "codec_grad_norm": method}
        self._teacher_lr = config.training.lr
        if config.teacher is not None and config.teacher.lr is not None:
            self._teacher_lr = config.teacher.lr
        groups = [list(module.parameters()) for module in self._modules.values()]
        self._optimizer = accelerator.prepare_optimizer(
            torch.optim.AdamW(
                [{"params": group} for group in groups if group],
                lr=config.training.lr,
                weight_decay=config.training.weight_decay,
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
            for parameter in self._parameters():
                parameter.grad = torch.full_like(parameter, math.inf)

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
        self._teachers.ranks.average(self._parameters(), rows / whole)
        norms = self._clip()
        for group in self._optimizer.param_groups:
            group["lr"] = self._training.lr * factor
        self._optimizer.step()
        self._optimizer.zero_grad()
        limit = self._training.max_grad_norm
        if self._optimizer.step_was_skipped:
            self._teachers.step(lr=0.0, grad_scale=0.0, max_grad_norm=limit, rows=rows)
            return norms
        return norms | self._teachers.step(self._teacher_lr * factor, 1.0 / scale, limit, rows)

    def let_go(self) -> None:
        """Forgets the student's gathered gradients."""
        for parameter in self._parameters():
            parameter.grad = None

    def tensors(self) -> dict[str, torch.Tensor]:
        """The moments of all parameters, flat."""
        moments = self._optimizer.state_dict()["state"]
        return {f"{place}.{name}": value for place, each in moments.items() for name, value in each.items()}

    def load(self, tensors: Tensors, facts: Mapping[str, Any]) -> None:
        """Puts back what `tensors` and `facts` gave.

        Raises:
            StateMismatch: moments of other parameters.
        """
        parameters = self._parameters()
        moments: dict[int, dict[str, torch.Tensor]] = {}
        for name, value in tensors.items():
            place, _, moment = name.partition(".")
            moments.setdefault(int(place), {})[moment] = value.clone()  # torch goes on with what it is given
            owner = parameters[int(place)] if int(place) < len(parameters) else None
            if owner is None or (moment != "step" and value.shape != owner.shape):
                raise StateMismatch(f"optimizer: {name} {list(value.shape)} belongs to no parameter of this run")
        self._optimizer.load_state_dict(
            {"state": moments, "param_groups": self._optimizer.state_dict()["param_groups"]}
        )
        if self._accelerator.scaler is not None and facts["scaler"]:
            self._accelerator.scaler.load_state_dict(facts["scaler"])

    def facts(self) -> dict[str, Any]:
        """The loss scale and its counters under `scaler`; empty without loss scaling."""
        scaler = self._accelerator.scaler
        return {"scaler": {} if scaler is None else dict(scaler.state_dict())}

    def _clip(self) -> dict[str, float]:
        self._accelerator.unscale_gradients()
        limit, norms = self._training.max_grad_norm or math.inf, {}
        for name, module in self._modules.items():
            parameters = [parameter for parameter in module.parameters() if parameter.grad is not None]
            norm = float(nn.utils.clip_grad_norm_(parameters, limit))
            if math.isfinite(norm):
                norms[name] = norm
            elif self._accelerator.scaler is None:
                raise NonFiniteError(
                    f"{name}: received {norm}, expected a number; lower training.lr, or set training.max_grad_norm"
                )
        return norms

    def _parameters(self) -> list[nn.Parameter]:
        return [parameter for group in self._optimizer.param_groups for parameter in group["params"]]


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
