"""A teacher whose weights lie on several devices, or on none until they are used: what was asked for, and where they lie; runs nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import align_module_device, convert_file_size_to_int
from torch import nn

from teacher_server.models.sharding import whole
from teaching_protocol.errors import ModelLoadError

__all__ = ["MAPS", "Spread", "is_offloaded", "is_spread", "main_device", "resolved", "whole_tensors"]

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

    def options(self, model: nn.Module) -> dict[str, Any]:
        """What transformers' `from_pretrained` is told.

        Args:
            model: the same without weights, for the names of its parts.

        Raises:
            ModelLoadError: a map or a size that cannot be read.
        """
        wanted = self.map()
        found: dict[str, Any] = {"device_map": wanted if isinstance(wanted, str) else resolved(model, wanted)}
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
                found[_device(device)] = int(convert_file_size_to_int(int(size) if size.isdecimal() else size))
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


def resolved(model: nn.Module, found: Mapping[str, int | str]) -> dict[str, int | str]:
    """A map whose names do not lie within each other, as accelerate wants it: what holds for a module holds but for what is said of its parts.

    Args:
        model: of any weights, also none.
        found: devices by names of modules or parameters; an empty name is the whole model.

    Raises:
        ModelLoadError: a name that the model has not, or a part that no name holds for.
    """
    parts = {name for name, _ in chain(model.named_modules(), model.named_parameters(), model.named_buffers())}
    unknown = sorted(set(found) - parts)
    if unknown:
        raise ModelLoadError(
            f"device_map: the model has no {unknown[0]!r}; its parts are {', '.join(_children(model, ''))}"
        )
    return _resolved(model, "", found, None)


def _resolved(
    model: nn.Module, path: str, found: Mapping[str, int | str], above: int | str | None
) -> dict[str, int | str]:
    here = found.get(path, above)
    if not any(name != path and (not path or name.startswith(f"{path}.")) for name in found):
        if here is None:
            raise ModelLoadError(f"device_map: it leaves {path} without a device; name it, or '' for all the rest")
        return {path: here}
    layout: dict[str, int | str] = {}
    for name in _children(model, path):
        layout |= _resolved(model, name, found, here)
    return layout


def _children(model: nn.Module, path: str) -> list[str]:
    """The modules right below one that hold anything, and the tensors that are its own."""
    module, prefix = model.get_submodule(path), f"{path}." if path else ""
    below = [
        name for name, child in module.named_children() if any(True for _ in chain(child.parameters(), child.buffers()))
    ]
    own = [name for name, _ in chain(module.named_parameters(recurse=False), module.named_buffers(recurse=False))]
    return [f"{prefix}{name}" for name in (*below, *own)]


def whole_tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Every parameter and buffer by name, sorted; one that is offloaded is brought to the CPU while it is looked at.

    One that is split over processes is put together: all of them must look, at the same time.
    """
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    for name, tensor in sorted(chain(model.named_parameters(), model.named_buffers()), key=lambda each: each[0]):
        if not tensor.is_meta:
            yield name, whole(tensor)
            continue
        if name in tied:
            continue  # on one device it is no parameter of its own
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
