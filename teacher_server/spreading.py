"""A teacher whose weights lie on several devices, or on none until they are used: what was asked for, and where they lie; runs nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import align_module_device, convert_file_size_to_int
from torch import nn

from teaching_protocol.errors import ModelLoadError

__all__ = ["MAPS", "Spread", "is_offloaded", "is_spread", "main_device", "whole_tensors"]

MAPS = ("auto", "balanced", "balanced_low_0", "sequential")
"""Maps that accelerate makes by itself from the devices' memory."""

_OFFLOADED = ("cpu", "disk")


@dataclass(frozen=True)
class Spread:
    """How a teacher's weights are to be spread.

    Args:
        device_map: one of MAPS, or a JSON file that maps names of modules to devices: a GPU's number, cpu or disk.
        memory: what each device may hold of the weights, as DEVICE=SIZE: 0=20GiB, cpu=60GiB.
        offload_folder: where weights lie that are mapped to the disk and are in no safetensors file as they are served.
    """

    device_map: str
    memory: tuple[str, ...] = ()
    offload_folder: Path | None = None

    def options(self) -> dict[str, Any]:
        """What transformers' `from_pretrained` is told.

        Raises:
            ModelLoadError: a map or a size that cannot be read.
        """
        found: dict[str, Any] = {"device_map": self.map()}
        if self.memory:
            found["max_memory"] = self.limits()
        if self.offload_folder is not None:
            found["offload_folder"] = str(self.offload_folder)
        return found

    def map(self) -> str | dict[str, int | str]:
        """The name of a map, or what the file holds."""
        if self.device_map in MAPS:
            return self.device_map
        try:
            found = json.loads(Path(self.device_map).read_text(encoding="utf-8"))
            return {str(name): _device(str(device)) for name, device in found.items()}
        except (OSError, ValueError, AttributeError) as error:
            raise ModelLoadError(
                f"device_map: received {self.device_map!r}, expected {', '.join(MAPS)}, or a JSON file that maps names of modules to "
                f'devices, such as {{"": "disk"}} ({error})'
            ) from error

    def limits(self) -> dict[int | str, int]:
        """Bytes by device.

        Raises:
            ModelLoadError: one that is no DEVICE=SIZE.
        """
        found: dict[int | str, int] = {}
        for each in self.memory:
            device, _, size = each.partition("=")
            try:
                found[_device(device)] = int(convert_file_size_to_int(size))
            except ValueError as error:
                raise ModelLoadError(
                    f"device_memory: received {each!r}, expected DEVICE=SIZE, such as 0=20GiB or cpu=60GiB ({error})"
                ) from error
        return found


def is_spread(model: nn.Module) -> bool:
    """Whether more than one device holds the model's weights, or a device other than the one that computes."""
    devices = {str(device) for device in _map_of(model).values()}
    return len(devices) > 1 or "disk" in devices


def is_offloaded(model: nn.Module) -> bool:
    """Whether some of the weights are on their device only while they are used."""
    return is_spread(model) and any(weight.is_meta for weight in model.parameters())


def main_device(model: nn.Module) -> torch.device:
    """The device that states enter on and come back to: the first that computes."""
    computing = [device for device in _map_of(model).values() if str(device) not in _OFFLOADED]
    if computing:
        return torch.device(computing[0])
    return torch.device("cpu") if is_spread(model) else next(model.parameters()).device


def whole_tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Every parameter and buffer by name, sorted; one that is offloaded is brought to the CPU while it is looked at."""
    for name, tensor in sorted(chain(model.named_parameters(), model.named_buffers()), key=lambda each: each[0]):
        if not tensor.is_meta:
            yield name, tensor
            continue
        path, _, own = name.rpartition(".")
        module = model.get_submodule(path)
        with align_module_device(module, execution_device=torch.device("cpu")):
            yield name, getattr(module, own)


def _map_of(model: nn.Module) -> dict[str, int | str]:
    found: dict[str, int | str] = getattr(model, "hf_device_map", None) or {}
    return found


def _device(name: str) -> int | str:
    name = name.strip()
    return int(name) if name.isdecimal() else name
