"""An optimizer's moments as flat tensors, by the place of their parameter; knows no schedule and no file."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from teaching_protocol.errors import StateMismatch

__all__ = ["load_moments", "moments", "parameters_of"]

Tensors = Mapping[str, torch.Tensor]


def parameters_of(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    """Its parameters, in the order of their places."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def moments(optimizer: torch.optim.Optimizer, first: int = 0) -> dict[str, torch.Tensor]:
    """The moments of all parameters as `<place>.<name>`, places counted from `first`."""
    state = optimizer.state_dict()["state"]
    return {f"{first + place}.{name}": value for place, each in state.items() for name, value in each.items()}


def load_moments(optimizer: torch.optim.Optimizer, tensors: Tensors, first: int = 0) -> None:
    """Puts back what `moments` gave; places below `first` are another optimizer's.

    Raises:
        StateMismatch: moments of other parameters.
    """
    parameters, found = parameters_of(optimizer), dict[int, dict[str, torch.Tensor]]()
    for name, value in tensors.items():
        text, _, moment = name.partition(".")
        place = int(text) - first
        if place < 0:
            continue
        owner = parameters[place] if place < len(parameters) else None
        if owner is None or (moment != "step" and value.shape != owner.shape):
            raise StateMismatch(f"optimizer: {name} {list(value.shape)} belongs to no parameter of this run")
        found.setdefault(place, {})[moment] = value.clone()  # torch goes on with what it is given
    optimizer.load_state_dict({"state": found, "param_groups": optimizer.state_dict()["param_groups"]})
