"""Weights of which each of several processes has a share of every layer: whether a model can be split so, and what of a tensor is here; runs nothing."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from transformers.distributed import DistributedConfig

from teaching_protocol.errors import ModelLoadError

__all__ = ["Shards", "is_sharded", "local_part", "whole"]


@dataclass(frozen=True)
class Shards:
    """Transformers' tensor parallelism over so many processes; see `Spread` for the other way to spread weights."""

    count: int

    def options(self, model: nn.Module) -> dict[str, Any]:
        """What transformers' `from_pretrained` is told, in a process that has its rank.

        Args:
            model: the same without weights.

        Raises:
            ModelLoadError: a model that cannot be split so, or not into so many parts.
        """
        if "tp_size" not in getattr(DistributedConfig, "__dataclass_fields__", {}):
            raise ModelLoadError(
                "tensor_parallel: this version of transformers cannot do it as it is used here; install a newer one, 5.23 can"
            )
        self._check_plan(model)
        self._check_heads(model)
        return {"distributed_config": DistributedConfig(tp_size=self.count)}

    def share_bytes(self, model: nn.Module) -> int:
        """The most that one process holds of a model's parameters and buffers, by its plan; tied ones counted once."""
        plan = getattr(model, "tp_plan", None) or {}
        buffers = sum(each.nbytes for each in model.buffers())
        sizes = {name: each.numel() * each.element_size() for name, each in model.named_parameters()}
        return buffers + sum(-(-size // self.count) if _is_split(name, plan) else size for name, size in sizes.items())

    def _check_plan(self, model: nn.Module) -> None:
        if not getattr(model, "tp_plan", None):
            kind = getattr(getattr(model, "config", None), "model_type", "trained student")
            raise ModelLoadError(
                f"tensor_parallel is {self.count}, but transformers has no plan to split a {kind}, expected a model that has one, such "
                "as llama, mistral or qwen2; spread its layers by --device-map, or leave tensor_parallel away"
            )

    def _check_heads(self, model: nn.Module) -> None:
        config: Any = model.config
        heads = int(config.num_attention_heads)
        groups = int(getattr(config, "num_key_value_heads", None) or heads)
        if heads % self.count or groups % self.count:
            fitting = [each for each in range(2, groups + 1) if not heads % each and not groups % each]
            raise ModelLoadError(
                f"tensor_parallel is {self.count}, but the model has {heads} attention heads and {groups} key-value heads, expected a number "
                f"that divides both: {', '.join(map(str, fitting)) or 'there is none'}"
            )


def is_sharded(model: nn.Module) -> bool:
    """Whether this process has only a share of the model's weights."""
    return any(isinstance(weight, DTensor) for weight in model.parameters())


def local_part(tensor: torch.Tensor) -> torch.Tensor:
    """What this process has of a tensor; any other tensor is given as it is."""
    if not isinstance(tensor, DTensor):
        return tensor
    with torch.no_grad():
        return tensor.to_local()


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor put together from all processes, each of which must ask for it at this moment; any other is given as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _is_split(name: str, plan: dict[str, str]) -> bool:
    """Whether a plan divides a parameter; a bias behind a row-wise product is whole everywhere."""
    module, _, own = re.sub(r"\.\d+\.", ".*.", name).rpartition(".")
    return module in plan and not (own == "bias" and plan[module].startswith("rowwise"))
