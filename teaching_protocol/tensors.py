"""Torch tensors as dtype + shape + little-endian raw bytes; knows no request and no gRPC.

`pack` gives a view of the tensor's own memory where it can, `unpack` a tensor over the
received bytes: neither copies. What is claimed is checked before anything is allocated.
"""

from __future__ import annotations

import functools
import math
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from teaching_protocol.errors import InvalidSetting, InvalidTensor
from teaching_protocol.int8 import Int8Rules, from_rows
from teaching_protocol.v1 import tensor_pb2 as pb

__all__ = ["COMPRESSIONS", "DTYPES", "MAX_RANK", "PackedTensor", "is_finite", "pack", "unpack"]

MAX_RANK = 8
"""Most dimensions of a tensor."""

DTYPES: dict[torch.dtype, int] = {
    torch.float32: pb.DTYPE_FLOAT32,
    torch.float16: pb.DTYPE_FLOAT16,
    torch.bfloat16: pb.DTYPE_BFLOAT16,
    torch.int64: pb.DTYPE_INT64,
    torch.int32: pb.DTYPE_INT32,
    torch.bool: pb.DTYPE_BOOL,
    torch.uint8: pb.DTYPE_UINT8,
}
"""What travels, by its number on the wire."""
_SCALE = torch.float32
_INT8 = Int8Rules()
_TORCH_DTYPES = {number: dtype for dtype, number in DTYPES.items()}

COMPRESSIONS: dict[str, torch.dtype] = {
    "none": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "int8": torch.bfloat16,  # what int8 rows do not suit
}
"""How a float port travels. Integer and bool ports always travel as they are."""

_INT8_ROWS = int(pb.DTYPE_INT8_ROWS)


@dataclass(frozen=True)
class PackedTensor:
    """A tensor as it travels: `dtype` is the wire's number, `data` raw little-endian memory, `scales` those of int8 rows."""

    dtype: int
    shape: tuple[int, ...]
    data: memoryview | bytes
    scales: bytes = b""


def pack(tensor: torch.Tensor, compression: str | None = None, int8: Int8Rules = _INT8) -> PackedTensor:
    """Gives the wire form of a tensor of any shape and any dtype of `DTYPES`.

    Args:
        tensor: on any device; a CPU tensor that needs no cast is not copied.
        compression: a key of `COMPRESSIONS` for float tensors, or None to keep the dtype.
        int8: which tensors may travel as int8 rows under the compression `int8`; the others travel as bf16.

    Raises:
        InvalidTensor: a dtype the wire does not carry, or more than `MAX_RANK` dimensions.
        InvalidSetting: an unknown compression.
    """
    if compression is not None and compression not in COMPRESSIONS:
        raise InvalidSetting(f"unknown compression {compression!r}; use one of {', '.join(COMPRESSIONS)}")
    tensor = tensor.detach()
    if tensor.dim() > MAX_RANK:
        raise InvalidTensor(f"a tensor of {tensor.dim()} dimensions; at most {MAX_RANK} travel")
    if compression is not None and tensor.is_floating_point():
        found = int8.rows(tensor) if compression == "int8" else None
        if found is not None:
            rows, scales = found
            return PackedTensor(_INT8_ROWS, tuple(tensor.shape), _memory(rows), bytes(_memory(scales)))
        tensor = tensor.to(COMPRESSIONS[compression])
    if tensor.dtype not in DTYPES:
        raise InvalidTensor(f"dtype {tensor.dtype} does not travel; use one of {', '.join(map(str, DTYPES))}")
    assert sys.byteorder == "little", "the wire is little-endian and so must be the machine"
    return PackedTensor(DTYPES[tensor.dtype], tuple(tensor.shape), _memory(tensor))


def unpack(
    dtype: int, shape: Sequence[int], data: memoryview | bytes, name: str = "tensor", scales: memoryview | bytes = b""
) -> torch.Tensor:
    """Gives a tensor over the received memory, which must not be written to; of int8 rows the float32 they stand for.

    Raises:
        InvalidTensor: an unknown dtype, a shape that is none, or another number of bytes
            than dtype and shape say. Nothing has been allocated then.
    """
    torch_dtype = torch.int8 if dtype == _INT8_ROWS else _TORCH_DTYPES.get(dtype)
    if torch_dtype is None:
        raise InvalidTensor(f"{name}: unknown dtype number {dtype}; known are {[*sorted(_TORCH_DTYPES), _INT8_ROWS]}")
    if len(shape) > MAX_RANK:
        raise InvalidTensor(f"{name}: {len(shape)} dimensions; at most {MAX_RANK} are accepted")
    if any(size < 0 for size in shape):
        raise InvalidTensor(f"{name}: negative size in shape {list(shape)}")
    expected = math.prod(shape) * torch_dtype.itemsize
    if expected != len(data):
        raise InvalidTensor(
            f"{name}: shape {list(shape)} of {torch_dtype} is {expected} bytes, but {len(data)} were received"
        )
    rows = expected // shape[-1] if dtype == _INT8_ROWS and shape and expected else 0
    if len(scales) != rows * _SCALE.itemsize or (dtype == _INT8_ROWS and not shape):
        raise InvalidTensor(f"{name}: {len(scales)} bytes of scales for {rows} rows of int8 in shape {list(shape)}")
    if expected == 0:
        return _empty(shape, _SCALE if dtype == _INT8_ROWS else torch_dtype, name)
    _silence_read_only_warning()
    found = torch.frombuffer(data, dtype=torch_dtype).reshape(tuple(shape))
    return from_rows(found, torch.frombuffer(scales, dtype=_SCALE)) if rows else found


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether no number is NaN or infinity; true of tensors that are no floats. Ten times faster than isfinite().all()."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    low, high = torch.aminmax(tensor)  # NaN if any number is
    return bool(torch.isfinite(low) & torch.isfinite(high))


def _memory(tensor: torch.Tensor) -> memoryview:
    return tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def _empty(shape: Sequence[int], dtype: torch.dtype, name: str) -> torch.Tensor:
    try:
        return torch.empty(tuple(shape), dtype=dtype)
    except RuntimeError as error:  # the strides of a shape like [0, 2^62, 2^62] overflow
        raise InvalidTensor(f"{name}: shape {list(shape)} is none a tensor can have") from error


@functools.cache
def _silence_read_only_warning() -> None:
    # torch warns once a process that received memory is read-only; nobody here writes to it.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.frombuffer(b"\0", dtype=torch.uint8)
