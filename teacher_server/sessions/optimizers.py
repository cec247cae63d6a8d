"""The optimizers a session may choose for its codec; the learning rate comes with each Step.

Fused: one kernel a parameter, a third of the default's time on a CPU. Optimizers of several sessions step in one call.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.optim.adam import adam
from torch.optim.adamw import adamw

from teaching_protocol.errors import InvalidSetting
from teaching_protocol.verbs import OptimizerSettings

__all__ = ["OPTIMIZERS", "Update", "build_optimizer", "update_together"]

Parameters = Iterable[torch.nn.Parameter]


def _adamw(parameters: Parameters, settings: OptimizerSettings) -> torch.optim.Optimizer:
    betas = (settings.beta1, settings.beta2)
    return torch.optim.AdamW(parameters, betas=betas, eps=settings.eps, weight_decay=settings.weight_decay, fused=True)


def _adam(parameters: Parameters, settings: OptimizerSettings) -> torch.optim.Optimizer:
    betas = (settings.beta1, settings.beta2)
    return torch.optim.Adam(parameters, betas=betas, eps=settings.eps, weight_decay=settings.weight_decay, fused=True)


def _sgd(parameters: Parameters, settings: OptimizerSettings) -> torch.optim.Optimizer:
    fused = settings.momentum == 0  # torch's fused momentum fails on a parameter whose first gradient comes late
    return torch.optim.SGD(parameters, momentum=settings.momentum, weight_decay=settings.weight_decay, fused=fused)


OPTIMIZERS: dict[str, Callable[[Parameters, OptimizerSettings], torch.optim.Optimizer]] = {
    "adam": _adam,
    "adamw": _adamw,
    "sgd": _sgd,
}


def build_optimizer(parameters: Parameters, settings: OptimizerSettings) -> torch.optim.Optimizer:
    """Builds the optimizer of a session.

    Raises:
        InvalidSetting: an unknown name or a value out of range.
    """
    if settings.name not in OPTIMIZERS:
        raise InvalidSetting(f"optimizer {settings.name!r} is unknown; use one of {', '.join(OPTIMIZERS)}")
    try:
        return OPTIMIZERS[settings.name](parameters, settings)
    except ValueError as error:
        raise InvalidSetting(f"optimizer {settings.name!r}: {error}") from error


@dataclass(frozen=True, eq=False)
class Update:
    """One optimizer's step on the gradients that lie at its parameters."""

    optimizer: torch.optim.Optimizer
    lr: float


def update_together(updates: Sequence[Update]) -> None:
    """Steps each optimizer once, bit for bit as one after the other.

    Adam and AdamW of equal settings and learning rate update all their parameters in one fused call, each with its own
    step count; parameters without a gradient are not in it. An optimizer that has not stepped yet, and SGD, steps alone.
    """
    groups: dict[Hashable, list[Update]] = {}
    for update in updates:
        for group in update.optimizer.param_groups:
            group["lr"] = update.lr
        groups.setdefault(_settings(update), []).append(update)
    for alike in groups.values():
        if len(alike) == 1:
            alike[0].optimizer.step()
        else:
            _fused_step([update.optimizer for update in alike])


def _settings(update: Update) -> Hashable:
    """What steps in one call share; the optimizer itself where it must step alone."""
    kind, optimizer = type(update.optimizer), update.optimizer
    if kind not in (torch.optim.Adam, torch.optim.AdamW) or not _has_moments(optimizer):
        return id(optimizer)
    group = optimizer.param_groups[0]
    return kind, update.lr, *group["betas"], group["eps"], group["weight_decay"]


def _has_moments(optimizer: torch.optim.Optimizer) -> bool:
    """Whether every parameter that has a gradient now has had one before."""
    parameters = optimizer.param_groups[0]["params"]
    return all(each in optimizer.state for each in parameters if each.grad is not None)


@torch.no_grad()
def _fused_step(optimizers: Sequence[torch.optim.Optimizer]) -> None:
    parameters = [
        (each, optimizer.state[each])
        for optimizer in optimizers
        for each in optimizer.param_groups[0]["params"]
        if each.grad is not None
    ]
    group: dict[str, Any] = optimizers[0].param_groups[0]
    step = adamw if isinstance(optimizers[0], torch.optim.AdamW) else adam
    step(
        [each for each, _ in parameters],
        [each.grad for each, _ in parameters],
        [state["exp_avg"] for _, state in parameters],
        [state["exp_avg_sq"] for _, state in parameters],
        [],
        [state["step"] for _, state in parameters],
        fused=True,
        amsgrad=False,
        beta1=group["betas"][0],
        beta2=group["betas"][1],
        lr=group["lr"],
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        maximize=False,
    )
