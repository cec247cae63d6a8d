"""From what is sent (ids of users and items, images) to a trained student's checked inputs; knows no layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch

from teacher_server.families.inputs import Tensors, check_ports, expect
from teaching_protocol.errors import InvalidTensor

__all__ = ["ExactImageInputs", "RatingsInputs"]


class RatingsInputs:
    """Prepares `user` and `item`, the raw ids of the data set.

    Args:
        view: from raw ids [rows] to rows of the student's tables (`Student.view`); ids it has not seen are unknown.
    """

    ports = ("item", "user")
    padding: Mapping[str, int] = MappingProxyType({})

    def __init__(self, view: Callable[[Tensors], Tensors]) -> None:
        self._view = view

    def prepare(self, inputs: Tensors, max_tokens: int) -> dict[str, torch.Tensor]:
        """`user` and `item` [rows] int64 from [rows, 1] each; `max_tokens` is of no meaning here.

        Raises:
            UnknownPort: a port this teacher does not read.
            InvalidTensor: no ids, or some whose dtype or shape does not fit.
        """
        check_ports(inputs, self.ports)
        columns = {name: _column(inputs, name) for name in self.ports}
        rows = {name: len(ids) for name, ids in columns.items()}
        if len(set(rows.values())) > 1:
            raise InvalidTensor(f"`user` and `item` have different numbers of rows: {rows}; send one of each a row")
        return dict(self._view(columns))

    def example(self) -> dict[str, torch.Tensor]:
        """User 0 and item 0, known or not."""
        return {name: torch.zeros(1, 1, dtype=torch.int64) for name in self.ports}


class ExactImageInputs:
    """Prepares `image`; nothing is resized, since the student saw one shape only.

    Args:
        shape: channels, height, width.
    """

    ports = ("image",)
    padding: Mapping[str, int] = MappingProxyType({})

    def __init__(self, shape: tuple[int, int, int]) -> None:
        self._shape = shape

    def prepare(self, inputs: Tensors, max_tokens: int) -> dict[str, torch.Tensor]:
        """`image` [rows, channels, height, width] uint8 as it is; `max_tokens` is of no meaning here.

        Raises:
            UnknownPort: a port this teacher does not read.
            InvalidTensor: no image, or one of another dtype or shape.
        """
        check_ports(inputs, self.ports)
        image = _sent(inputs, "image", self.ports)
        fits = image.dim() == 4 and tuple(image.shape[1:]) == self._shape and len(image) > 0
        shape = ", ".join(map(str, self._shape))
        expect(image, "image", (torch.uint8,), f"[batch, {shape}] uint8, what this student was trained on", fits)
        return {"image": image}

    def example(self) -> dict[str, torch.Tensor]:
        """A black image."""
        return {"image": torch.zeros(1, *self._shape, dtype=torch.uint8)}


def _column(inputs: Tensors, name: str) -> torch.Tensor:
    ids = _sent(inputs, name, RatingsInputs.ports)
    expect(ids, name, (torch.int64,), "[batch, 1] int64", ids.dim() == 2 and ids.shape[1] == 1 and len(ids) > 0)
    return ids[:, 0]


def _sent(inputs: Tensors, name: str, ports: tuple[str, ...]) -> torch.Tensor:
    if name not in inputs:
        raise InvalidTensor(f"no `{name}` received; send {' and '.join(ports)}")
    return inputs[name]
