"""Values of every verb for hypothesis: any field, any tensor."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any

import torch
from hypothesis import strategies as st

from teaching_protocol.tensors import COMPRESSIONS, DTYPES
from teaching_protocol.wire import METHODS

__all__ = ["MESSAGES", "same", "tensors", "values_of"]

MESSAGES: tuple[type[Any], ...] = tuple(cls for method in METHODS for cls in (method.request, method.reply))

_texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    """Any dtype, rank 0 to 8, any bits, sometimes not contiguous."""
    dtype = draw(st.sampled_from(list(DTYPES)))
    shape = draw(st.lists(st.integers(0, 3), max_size=4) | st.just([1, 2, 1, 1, 2, 1, 1, 2]))
    size = torch.Size(shape).numel()
    if dtype == torch.bool:
        flat = torch.tensor(draw(st.lists(st.booleans(), min_size=size, max_size=size)), dtype=torch.bool)
    else:
        data = draw(st.binary(min_size=size * dtype.itemsize, max_size=size * dtype.itemsize))
        flat = torch.frombuffer(bytearray(data), dtype=dtype) if data else torch.empty(0, dtype=dtype)
    tensor = flat.reshape(shape)
    return tensor.transpose(0, -1) if tensor.dim() > 1 and draw(st.booleans()) else tensor


def values_of(cls: type[Any]) -> st.SearchStrategy[Any]:
    """Any value of a dataclass of `verbs`."""
    hints = typing.get_type_hints(cls)
    return st.builds(cls, **{field.name: _field(field.name, hints[field.name]) for field in dataclasses.fields(cls)})


def _field(name: str, hint: Any) -> st.SearchStrategy[Any]:
    if name == "compression":
        return st.sampled_from(list(COMPRESSIONS))
    if name == "compressions":
        return st.lists(st.sampled_from(list(COMPRESSIONS)), max_size=3).map(tuple)
    if dataclasses.is_dataclass(hint):
        return values_of(typing.cast(type[Any], hint))
    if typing.get_origin(hint) is Mapping:
        return st.dictionaries(_texts, tensors(), max_size=3)
    unsigned = name == "epoch"
    integers = st.integers(0 if unsigned else -(2**63), 2**63 - 1)
    known: dict[Any, st.SearchStrategy[Any]] = {
        str: _texts, bytes: st.binary(max_size=40), bool: st.booleans(), int: integers,
        float: st.floats(allow_nan=False),
        tuple[str, ...]: st.lists(_texts, max_size=3).map(tuple),
        tuple[int, ...]: st.lists(integers, max_size=3).map(tuple),
    }  # fmt: skip
    return known[hint]


def same(one: Any, other: Any) -> bool:
    """Equal field for field, tensors in dtype, shape and every bit."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and one.shape == other.shape and _bits(one) == _bits(other)
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    if dataclasses.is_dataclass(one):
        return type(one) is type(other) and all(
            same(getattr(one, field.name), getattr(other, field.name)) for field in dataclasses.fields(one)
        )
    return bool(one == other)


def _bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
