"""Hidden states of any module, read where named modules of it take them in or put them out; changes nothing of it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from student_models.student import States
from teaching_protocol.errors import ConfigError

__all__ = ["Tap", "Taps", "layer_list", "layer_taps"]


@dataclass(frozen=True)
class Tap:
    """One cut: what the module of this dotted name puts out, or the first tensor it takes in."""

    module: str
    side: Literal["output", "input"] = "output"


class Taps:
    """The states of the newest forward of a model, whoever called it: the caller, DDP, a trainer.

    Recomputation under gradient checkpointing is no forward of the whole model, so it is not read a second time.

    Args:
        model: gets hooks, which `close` takes away; while it is exported they do nothing.
        taps: cut 0 first. Each module runs once a forward.
        mask: argument of the model's forward that holds [batch, tokens], 0 for padding; without it all tokens count.

    Raises:
        ConfigError: the model has no module of such a name.
    """

    def __init__(self, model: nn.Module, taps: Sequence[Tap], mask: str = "attention_mask") -> None:
        modules = dict(model.named_modules())
        for tap in taps:
            if tap.module not in modules:
                raise ConfigError(f"taps: received {tap.module!r}, expected a name of `model.named_modules()`")
        self._names, self._mask = inspect.signature(model.forward), mask
        self._found: dict[Tap, torch.Tensor] = {}
        self._taps, self._is_running, self._has_grad = tuple(taps), False, False
        self._given: Any = None
        self._hooks = [model.register_forward_pre_hook(self._begin, with_kwargs=True)]
        for tap in dict.fromkeys(taps):
            module = modules[tap.module]
            if tap.side == "input":
                self._hooks.append(
                    module.register_forward_pre_hook(
                        lambda _, args, kwargs, tap=tap: self._keep(tap, (args, kwargs)), with_kwargs=True
                    )
                )
            else:
                self._hooks.append(
                    module.register_forward_hook(lambda _, args, output, tap=tap: self._keep(tap, output))
                )
        self._hooks.append(model.register_forward_hook(self._end))

    def take(self) -> list[States]:
        """The states at every cut of the newest forward, which are let go here.

        Raises:
            ConfigError: the model has not run since, or a tapped module did not run in it.
        """
        found, self._found = self._found, {}
        missing = [tap.module for tap in self._taps if tap not in found]
        if missing:
            raise ConfigError(
                f"no hidden state was seen at {', '.join(missing)}; run the model once before each loss, and tap modules "
                "that run in every forward"
            )
        return [self._states(found[tap]) for tap in self._taps]

    def close(self) -> None:
        """Takes the hooks away; harmless when repeated."""
        for hook in self._hooks:
            hook.remove()
        self._found = {}

    def _begin(self, _: nn.Module, args: Any, kwargs: Any) -> None:
        if not torch.compiler.is_exporting():
            self._found, self._is_running, self._has_grad = {}, True, torch.is_grad_enabled()
            self._given = self._names.bind_partial(*args, **kwargs).arguments.get(self._mask)

    def _end(self, *_: Any) -> None:
        self._is_running = False

    def _keep(self, tap: Tap, value: Any) -> None:
        if not self._is_running:
            return
        if self._has_grad and not torch.is_grad_enabled():
            raise ConfigError(
                f"taps: {tap.module!r} runs without gradients within a forward that has them, as under reentrant checkpointing; "
                'checkpoint with {"use_reentrant": False}, or tap modules around the checkpointed ones'
            )
        self._found[tap] = _first_tensor(value)

    def _states(self, hidden: torch.Tensor) -> States:
        """[batch, tokens, width] of what a module gave: one token of a vector, a token for each cell of an image."""
        if hidden.dim() == 2:
            hidden = hidden[:, None]
        elif hidden.dim() > 3:
            hidden = hidden.flatten(2).transpose(1, 2)
        given = self._given
        fits = isinstance(given, torch.Tensor) and given.shape == hidden.shape[:2]
        mask = given.bool() if fits else torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
        return States(hidden, mask)


def layer_list(model: nn.Module) -> str:
    """The dotted name of the list that holds a transformer's layers: the longest list of modules of one class.

    Raises:
        ConfigError: there is none.
    """
    lists = {
        name: module for name, module in model.named_modules() if isinstance(module, nn.ModuleList) and len(module)
    }
    alike = {name: len(each) for name, each in lists.items() if len({type(layer) for layer in each}) == 1}
    if not alike:
        raise ConfigError(
            f"taps: {type(model).__name__} has no list of layers of one class; name the modules whose outputs are to be "
            'read, such as taps=["stem", "block1", "block2"]'
        )
    name: str = max(alike, key=alike.__getitem__)
    return name


def layer_taps(model: nn.Module) -> list[Tap]:
    """A cut before the first layer of a transformer and one behind each."""
    name = layer_list(model)
    count = len(model.get_submodule(name))  # type: ignore[arg-type]
    return [Tap(f"{name}.0", "input"), *(Tap(f"{name}.{layer}") for layer in range(count))]


def _first_tensor(value: Any) -> torch.Tensor:
    """The first floating tensor in what a module takes in or puts out."""
    if isinstance(value, torch.Tensor):
        return value
    for each in value.values() if isinstance(value, Mapping) else value:
        if isinstance(each, torch.Tensor) and each.is_floating_point():
            return each
        if isinstance(each, tuple | list | Mapping) and len(each):
            return _first_tensor(each)
    raise ConfigError(f"taps: a tapped module gave {type(value).__name__} without a tensor; tap another one")
