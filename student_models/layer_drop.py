"""A smaller model made of some layers of a larger one, as PKD and DistilBERT begin; trains nothing."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence

import torch
from torch import nn
from transformers import PreTrainedModel

from student_models.taps import layer_list
from teaching_protocol.errors import ConfigError

__all__ = ["drop_layers", "every_layer"]


def every_layer(layers: int, step: int) -> tuple[int, ...]:
    """Every `step`-th of `layers` layers, the last one among them where it divides: (1, 3, 5) of 6 by 2.

    Raises:
        ConfigError: a step that leaves none.
    """
    kept = tuple(range(step - 1, layers, step)) if step >= 1 else ()
    if not kept:
        raise ConfigError(f"every: received {step}, expected 1 to {layers}, the layers that are there")
    return kept


def drop_layers(model: PreTrainedModel, keep: Sequence[int]) -> PreTrainedModel:
    """A new model of the same class with the layers `keep` (from 0) of a transformer, and all else of it.

    Sun et al. 2019 (PKD, arXiv 1908.09355) keep the first k layers, Sanh et al. 2019 (DistilBERT, arXiv 1910.01108) every
    other one. The weights are copies. The global random state is neither read nor moved.

    Raises:
        ConfigError: a layer that is not there, or none.
    """
    name = layer_list(model)
    count = len(model.get_submodule(name))
    if not keep or not all(0 <= layer < count for layer in keep):
        raise ConfigError(f"keep: received {list(keep)}, expected some of the layers 0 to {count - 1}")
    config = copy.deepcopy(model.config)
    config.num_hidden_layers = len(keep)
    if isinstance(kinds := getattr(config, "layer_types", None), list):
        config.layer_types = [kinds[layer] for layer in keep]
    with torch.random.fork_rng(devices=[]):
        smaller: PreTrainedModel = type(model)(config)
    smaller.load_state_dict(_renamed(model, name, {layer: place for place, layer in enumerate(keep)}))
    return smaller.to(model.device, model.dtype).train(model.training)


def _renamed(model: nn.Module, layers: str, places: dict[int, int]) -> dict[str, torch.Tensor]:
    """The weights by their names in the smaller model."""
    pattern = re.compile(rf"{re.escape(layers)}\.(\d+)\.(.*)")
    found: dict[str, torch.Tensor] = {}
    for name, value in model.state_dict().items():
        match = pattern.fullmatch(name)
        if match is None:
            found[name] = value
        elif int(match[1]) in places:
            found[f"{layers}.{places[int(match[1])]}.{match[2]}"] = value
    return found
