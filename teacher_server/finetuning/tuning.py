"""Epochs of supervised training, stopped early and chosen by a validation split; knows no data set and no model."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import nn
from transformers import get_linear_schedule_with_warmup

from task_data.metrics import measured
from task_data.splits import METRICS, TaskKind
from teaching_protocol.errors import NonFiniteError

__all__ = ["Epoch", "Examples", "Objective", "Plan", "tune"]

_EVALUATION_ROWS = 64


@dataclass(frozen=True)
class Examples:
    """N examples. `outputs` gives [B, outputs] for the row numbers [B]; `targets` are `Split.labels`, all of them known."""

    outputs: Callable[[torch.Tensor], torch.Tensor]
    targets: torch.Tensor


@dataclass(frozen=True)
class Objective:
    """What outputs are held against: classes, or targets of which the outputs give (target - shift) / scale."""

    kind: TaskKind
    shift: float = 0.0
    scale: float = 1.0

    @property
    def is_regression(self) -> bool:
        """Whether less of the metric is better."""
        return self.kind == "regression"

    @property
    def metric(self) -> str:
        """accuracy or micro_f1 (higher is better), or rmse in the unit of the targets (lower is better)."""
        return METRICS[self.kind]

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Cross-entropy, that of each class by itself, or the mean squared error of scaled targets; a scalar."""
        if self.kind == "multi_label":
            return nn.functional.binary_cross_entropy_with_logits(outputs, targets.to(outputs.dtype))
        if not self.is_regression:
            return nn.functional.cross_entropy(outputs, targets)
        return nn.functional.mse_loss(outputs.squeeze(-1), (targets - self.shift) / self.scale)

    def score(self, outputs: torch.Tensor, targets: torch.Tensor) -> float:
        """The metric."""
        outputs, targets = outputs.cpu(), targets.cpu()
        if self.is_regression:
            outputs = outputs.squeeze(-1).double() * self.scale + self.shift
        return measured(self.kind, outputs, targets)[self.metric]


@dataclass(frozen=True)
class Plan:
    """How each learning rate is tried: AdamW, a linear rise over the `warmup` part of all steps, then a linear fall."""

    learning_rates: tuple[float, ...]
    epochs: int
    batch_size: int
    patience: int
    weight_decay: float
    warmup: float
    max_grad_norm: float
    seed: int


@dataclass(frozen=True)
class Epoch:
    """What one epoch came to; `train` is measured while it learns, with dropout."""

    learning_rate: float
    epoch: int
    train: float
    validation: float
    validation_loss: float


@dataclass(frozen=True)
class _Best:
    epoch: Epoch
    rank: tuple[float, float]
    weights: list[torch.Tensor]


def tune(
    learner: nn.Module,
    train: Examples,
    validation: Examples,
    objective: Objective,
    plan: Plan,
    accelerator: Accelerator,
    report: Callable[[Epoch], None],
) -> tuple[Epoch, Sequence[Epoch]]:
    """Trains what requires a gradient in `learner`, once a learning rate, and leaves it with the best weights found.

    Best is the epoch with the best validation metric, of equals the one with the lowest validation loss. Every
    learning rate starts from the same weights and the same seed. Ours; no paper prescribes it.

    Returns:
        The best epoch, and all of them in the order they were run.

    Raises:
        NonFiniteError: no epoch of any learning rate had a finite validation loss.
    """
    parameters = [parameter for parameter in learner.parameters() if parameter.requires_grad]
    start = _copy(parameters)
    best: _Best | None = None
    history: list[Epoch] = []
    for rate in plan.learning_rates:
        _restore(parameters, start)
        trial = _Trial(learner, parameters, rate, train, objective, plan, accelerator)
        since_best, best_rank = 0, (-math.inf, -math.inf)
        for number in range(1, plan.epochs + 1):
            seen = trial.epoch()
            score, loss = _evaluate(learner, validation, objective)
            history.append(Epoch(rate, number, seen, score, loss))
            report(history[-1])
            if not math.isfinite(loss):
                break
            rank = (-score if objective.is_regression else score, -loss)
            if best is None or rank > best.rank:
                best = _Best(history[-1], rank, _copy(parameters))
            since_best = 0 if rank > best_rank else since_best + 1
            best_rank = max(best_rank, rank)
            if since_best >= plan.patience:
                break
    if best is None:
        raise NonFiniteError(
            f"the validation loss was no number with learning rates {', '.join(map(str, plan.learning_rates))}; "
            "lower the learning rate"
        )
    _restore(parameters, best.weights)
    learner.eval()
    return best.epoch, history


class _Trial:
    """One learning rate: its optimizer, its schedule and its order of the rows."""

    def __init__(
        self,
        learner: nn.Module,
        parameters: list[nn.Parameter],
        learning_rate: float,
        train: Examples,
        objective: Objective,
        plan: Plan,
        accelerator: Accelerator,
    ) -> None:
        self._learner, self._parameters = learner, parameters
        self._train, self._objective, self._plan, self._accelerator = train, objective, plan, accelerator
        steps = plan.epochs * math.ceil(len(train.targets) / plan.batch_size)
        optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=plan.weight_decay)
        self._optimizer = accelerator.prepare_optimizer(optimizer)
        self._schedule = get_linear_schedule_with_warmup(optimizer, math.ceil(plan.warmup * steps), steps)
        self._order = torch.Generator().manual_seed(plan.seed)
        torch.manual_seed(plan.seed)  # of dropout

    def epoch(self) -> float:
        """One pass over the training rows; gives the metric of what was put out on the way."""
        _train_mode(self._learner)
        rows = torch.randperm(len(self._train.targets), generator=self._order)
        outputs = [self._step(batch) for batch in torch.split(rows, self._plan.batch_size)]
        return self._objective.score(torch.cat(outputs), self._train.targets[rows.to(self._train.targets.device)])

    def _step(self, rows: torch.Tensor) -> torch.Tensor:
        targets = self._train.targets[rows.to(self._train.targets.device)]
        outputs = self._train.outputs(rows)
        self._accelerator.backward(self._objective.loss(outputs, targets))
        self._accelerator.clip_grad_norm_(self._parameters, self._plan.max_grad_norm)
        self._optimizer.step()
        self._schedule.step()
        self._optimizer.zero_grad()
        return outputs.detach()


def _evaluate(learner: nn.Module, examples: Examples, objective: Objective) -> tuple[float, float]:
    """Metric and loss, in evaluation mode and without gradients."""
    learner.eval()
    with torch.no_grad():
        rows = torch.split(torch.arange(len(examples.targets)), _EVALUATION_ROWS)
        outputs = torch.cat([examples.outputs(batch) for batch in rows])
        loss = objective.loss(outputs, examples.targets).item()
    return objective.score(outputs, examples.targets), loss


def _train_mode(learner: nn.Module) -> None:
    """Dropout on; batch norms keep the statistics they came with, which a few hundred rows would only blur."""
    learner.train()
    for module in learner.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


def _copy(parameters: Sequence[nn.Parameter]) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in parameters]


def _restore(parameters: Sequence[nn.Parameter], values: Sequence[torch.Tensor]) -> None:
    with torch.no_grad():
        for parameter, value in zip(parameters, values, strict=True):
            parameter.copy_(value)
