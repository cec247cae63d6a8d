"""How a device map would lay a teacher's weights out, given what each device may hold; loads none of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from accelerate.utils import get_balanced_memory, get_max_memory, infer_auto_device_map

from teacher_server.models.split import FrozenTeacher
from teacher_server.models.spreading import MAPS, Spread, resolved
from teaching_protocol.errors import ModelLoadError

__all__ = ["Layout", "Share", "lay_out"]

_OFFLOADED = ("cpu", "disk")


@dataclass(frozen=True)
class Share:
    """What one device gets: modules by name, their bytes, and the bytes it may hold; None where nobody said."""

    device: str
    modules: tuple[str, ...]
    size_bytes: int
    limit_bytes: int | None


@dataclass(frozen=True)
class Layout:
    """The shares of all devices, those that compute first.

    Attributes:
        main: where states enter and come back, and sessions lie: the first device that computes.
        largest_bytes: of the largest layer, for which there must be room where it computes if it is offloaded.
    """

    shares: tuple[Share, ...]
    main: str
    largest_bytes: int

    @property
    def offloads(self) -> bool:
        """Whether weights move to their device each time they are used."""
        return any(self._is_offloaded(share) for share in self.shares)

    @property
    def main_bytes(self) -> int:
        """What lies on the main device: its share, and one layer that comes and goes."""
        own = sum(share.size_bytes for share in self.shares if share.device == self.main)
        return own + (self.largest_bytes if self.offloads else 0)

    def _is_offloaded(self, share: Share) -> bool:
        return share.device == "disk" or (share.device == "cpu" and self.main != "cpu")


def lay_out(teacher: FrozenTeacher, spread: Spread) -> Layout:
    """The layout that loading with this map would come to; the same functions of accelerate decide.

    Args:
        teacher: of `empty_teacher`.
        spread: the map and what each device may hold.

    Raises:
        ModelLoadError: a map that leaves modules without a device, or a map or size that cannot be read.
    """
    model: Any = teacher.model
    limits = spread.limits() or None
    wanted = spread.map()
    found = _inferred(model, wanted, limits) if isinstance(wanted, str) else resolved(model, wanted)
    sizes, modules = Counter[str](), dict[str, list[str]]()
    for name, tensor in model.named_parameters():
        sizes[_device_of(name, found)] += tensor.numel() * tensor.element_size()
    for name, device in found.items():
        modules.setdefault(str(device), []).append(name or "all")
    computing = [str(device) for device in found.values() if str(device) not in _OFFLOADED]
    main = computing[0] if computing else "cpu"
    for name, tensor in model.named_buffers():  # accelerate leaves them where they are used
        device = _device_of(name, found)
        sizes[main if device in _OFFLOADED else device] += tensor.numel() * tensor.element_size()
    order = sorted(modules, key=lambda device: (_OFFLOADED.index(device) + 1 if device in _OFFLOADED else 0, device))
    known = {str(device): size for device, size in (limits or {}).items()}
    shares = tuple(Share(each, tuple(modules[each]), sizes[each], known.get(each)) for each in order)
    return Layout(shares, main, _largest_layer(model))


def _inferred(model: Any, name: str, limits: Mapping[int | str, int] | None) -> dict[str, int | str]:
    whole = getattr(model, "_no_split_modules", None)
    if not whole:
        raise ModelLoadError(
            f"device_map: a model of type {model.config.model_type} does not say which of its parts stay together, expected one "
            f"that does with {', '.join(MAPS)}; write a map by hand, or leave it away"
        )
    options = {"no_split_module_classes": whole}
    if name == "sequential":
        memory = get_max_memory(limits)
    else:
        memory = get_balanced_memory(model, max_memory=limits, low_zero=name == "balanced_low_0", **options)
    found: dict[str, int | str] = infer_auto_device_map(model, max_memory=memory, **options)
    return found


def _largest_layer(model: Any) -> int:
    whole = getattr(model, "_no_split_modules", None) or ()
    layers = [each for each in model.modules() if type(each).__name__ in whole]
    sizes = [sum(tensor.numel() * tensor.element_size() for tensor in each.parameters()) for each in layers]
    return max(sizes, default=0)


def _device_of(name: str, found: Mapping[str, int | str]) -> str:
    """The device of the longest name in the map that a tensor's own begins with."""
    fitting = [each for each in found if not each or name == each or name.startswith(f"{each}.")]
    return str(found[max(fitting, key=len)])
