from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from teaching_protocol.errors import InvalidSetting, InvalidTensor
from teaching_protocol.tensors import COMPRESSIONS, DTYPES, MAX_RANK, pack, unpack
from tests.calls import attempt
from tests.unit.teaching_protocol.values import same, tensors

SHAPES = [(), (0,), (1,), (3, 0, 2), (5, 7), (2, 1, 3, 1, 2, 1, 1, 2)]


def some(dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    values = torch.arange(math.prod(shape)).reshape(shape) - 3
    return values % 2 == 0 if dtype == torch.bool else values.to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_dtype_and_shape_returns_as_it_was(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor = some(dtype, shape)
    packed = pack(tensor)
    assert len(packed.data) == tensor.nbytes
    assert same(unpack(packed.dtype, packed.shape, packed.data), tensor)


@given(tensors())
@settings(max_examples=200, deadline=None)
def test_every_bit_returns(tensor: torch.Tensor) -> None:
    packed = pack(tensor)
    assert same(unpack(packed.dtype, packed.shape, bytes(packed.data)), tensor)


def test_special_floats_keep_their_bits() -> None:
    tensor = torch.tensor([float("nan"), -0.0, float("inf"), 1e-45, -float("inf")])
    packed = pack(tensor)
    assert bytes(packed.data) == tensor.numpy().tobytes()


def test_the_bytes_are_little_endian_row_major() -> None:
    assert bytes(pack(torch.tensor([[1, 2], [3, 4]], dtype=torch.int32).T).data) == np.array(
        [1, 3, 2, 4], dtype="<i4"
    ).tobytes()  # fmt: skip


def test_pack_does_not_copy_and_unpack_lies_over_the_bytes() -> None:
    tensor = torch.arange(8.0)
    packed = pack(tensor)
    assert np.frombuffer(packed.data, np.uint8).ctypes.data == tensor.data_ptr()
    data = bytes(packed.data)
    assert unpack(packed.dtype, packed.shape, data).data_ptr() == np.frombuffer(data, np.uint8).ctypes.data


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_compression_is_torchs_rounding_and_leaves_integers(compression: str) -> None:
    floats, numbers = torch.randn(50), torch.arange(5)
    packed = pack(floats, compression)
    assert same(unpack(packed.dtype, packed.shape, packed.data), floats.to(COMPRESSIONS[compression]))
    assert pack(numbers, compression).dtype == DTYPES[torch.int64]


def test_what_does_not_travel() -> None:
    with pytest.raises(InvalidTensor, match="float64 does not travel"):
        pack(torch.zeros(2, dtype=torch.float64))
    with pytest.raises(InvalidTensor, match="9 dimensions; at most 8"):
        pack(torch.zeros((1,) * (MAX_RANK + 1)))
    with pytest.raises(InvalidSetting, match="'zip'; use one of none, bf16, fp16, int8"):
        pack(torch.zeros(2), "zip")


BAD = [
    (1, (3,), 8, "is 12 bytes, but 8 were received"),
    (1, (1,), 8, "is 4 bytes, but 8 were received"),
    (1, (2**62, 2**62, 2**62), 8, "but 8 were received"),
    (1, (-1, -2), 8, "negative size"),
    (0, (8,), 8, "unknown dtype number 0"),
    (9, (8,), 8, "unknown dtype number 9"),
    (8, (2, 4), 8, "0 bytes of scales for 2 rows"),
    (8, (), 1, "0 bytes of scales for 0 rows"),
    (8, (2, 2**61), 8, "but 8 were received"),
    (7, (1,) * 9, 1, "9 dimensions"),
]


@pytest.mark.parametrize(("dtype", "shape", "size", "sentence"), BAD, ids=str)
def test_false_claims(dtype: int, shape: tuple[int, ...], size: int, sentence: str) -> None:
    with pytest.raises(InvalidTensor, match=f"message: .*{sentence}"):
        unpack(dtype, shape, b"\0" * size, "message")


def test_nothing_in_huge_dimensions() -> None:
    with pytest.raises(InvalidTensor):
        unpack(1, (0, 2**62, 2**62), b"")


@given(st.integers(-1, 9), st.lists(st.integers(-2, 2**20), max_size=9), st.binary(max_size=32))
@settings(max_examples=300, deadline=None)
def test_only_errors_of_the_tree(dtype: int, shape: list[int], data: bytes) -> None:
    found = attempt(lambda: unpack(dtype, shape, data))
    if isinstance(found, torch.Tensor):
        assert (list(found.shape), found.nbytes) == (shape, len(data))
    else:
        assert isinstance(found, InvalidTensor)
