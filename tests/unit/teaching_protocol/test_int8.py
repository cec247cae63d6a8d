"""Rows of int8: how near they are, what does not go that way, and that the measured error is the true one."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from teaching_protocol import verbs
from teaching_protocol.int8 import Int8Rules, from_rows, to_rows
from teaching_protocol.tensors import DTYPES, pack, unpack
from teaching_protocol.v1 import teacher_pb2, tensor_pb2
from teaching_protocol.wire import pieces, read
from tests.unit.teaching_protocol.values import same

FLOATS = [dtype for dtype in DTYPES if dtype.is_floating_point]


@st.composite
def floats(draw: st.DrawFn) -> torch.Tensor:
    shape = [*draw(st.lists(st.integers(1, 4), min_size=1, max_size=3)), draw(st.integers(16, 40))]
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    exponents = torch.randint(-30, 30, [*shape[:-1], 1], generator=generator)
    return torch.randn(shape, generator=generator) * 2.0**exponents


@given(floats())
@settings(max_examples=100, deadline=None)
def test_every_number_is_within_half_a_level_of_its_rows_largest(tensor: torch.Tensor) -> None:
    rows, scales, error = to_rows(tensor)
    found = from_rows(rows, scales)
    assert (rows.dtype, rows.shape, found.dtype, found.shape) == (torch.int8, tensor.shape, torch.float32, tensor.shape)
    level = tensor.abs().amax(-1, keepdim=True) / 127
    assert ((found - tensor).abs() <= level * 0.5001).all()
    true = (found.double() - tensor.double()).abs().sum() / tensor.double().abs().sum()
    assert error == pytest.approx(float(true), rel=1e-3, abs=1e-7)


def recorded(limit: float = 0.02) -> tuple[Int8Rules, list[tuple[float, bool]]]:
    heard: list[tuple[float, bool]] = []
    return Int8Rules(limit, lambda error, is_kept: heard.append((error, is_kept))), heard


def sent(tensor: torch.Tensor, rules: Int8Rules) -> torch.Tensor:
    """The tensor after it travelled over the wire under int8."""
    data = b"".join(pieces(verbs.ForwardReply(outputs={"x": tensor}), "int8", 2**20, rules))
    return read(verbs.ForwardReply, data).outputs["x"]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype(dtype: torch.dtype) -> None:
    rules, heard = recorded()
    tensor = torch.randn(3, 4, 64).mul(20).to(dtype)
    found = sent(tensor, rules)
    if dtype in FLOATS:
        assert found.dtype == torch.float32
        assert [is_kept for _, is_kept in heard] == [True]
        assert (found - tensor.float()).abs().sum() / tensor.float().abs().sum() < 0.01
    else:
        assert same(found, tensor)
        assert not heard


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("shape", [(), (50,), (3, 15), (0, 64), (64, 0)], ids=str)
def test_what_is_too_small_goes_as_bf16_unmeasured(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    rules, heard = recorded()
    tensor = torch.randn(shape).to(dtype)
    assert same(sent(tensor, rules), tensor.to(torch.bfloat16))
    assert not heard


def outlier() -> torch.Tensor:
    tensor = torch.randn(8, 384)
    tensor[:, 7] *= 100
    return tensor


def with_one(value: float) -> torch.Tensor:
    tensor = torch.randn(8, 384)
    tensor[3, 5] = value
    return tensor


@pytest.mark.parametrize(
    "tensor", [outlier(), with_one(math.nan), with_one(math.inf), torch.full((2, 16), 1e-45)],
    ids=["outlier", "nan", "infinity", "denormal"],
)  # fmt: skip
def test_what_int8_would_ruin_goes_as_bf16(tensor: torch.Tensor) -> None:
    rules, heard = recorded()
    assert same(sent(tensor, rules), tensor.to(torch.bfloat16))
    [(error, is_kept)] = heard
    assert not is_kept
    assert not error <= rules.error_limit


def test_the_limit_is_a_setting() -> None:
    tensor = torch.randn(8, 384)
    for limit, is_kept in ((0.0, False), (0.007, False), (0.009, True), (1.0, True)):
        rules, heard = recorded(limit)
        assert (sent(tensor, rules).dtype == torch.float32) is is_kept
        assert heard[0][0] == pytest.approx(0.0078, rel=0.1)


def test_zeros_stay_zeros() -> None:
    rules, heard = recorded(0.0)
    tensor = torch.zeros(3, 32)
    assert torch.equal(sent(tensor, rules), tensor)
    assert heard == [(0.0, True)]
    tensor[1] = torch.arange(32.0)
    assert torch.equal(sent(tensor, Int8Rules())[::2], tensor[::2])


def test_a_quarter_of_the_bytes_and_standard_protobuf() -> None:
    tensor = torch.randn(16, 8, 384)
    data = b"".join(pieces(verbs.ForwardReply(outputs={"x": tensor}), "int8"))
    assert len(data) < tensor.nbytes * 0.26
    message = teacher_pb2.ForwardReply.FromString(data).outputs["x"]
    assert (message.dtype, list(message.shape)) == (tensor_pb2.DTYPE_INT8_ROWS, [16, 8, 384])
    assert (len(message.data), len(message.scales)) == (16 * 8 * 384, 16 * 8 * 4)
    rows = torch.frombuffer(bytearray(message.data), dtype=torch.int8).reshape(16, 8, 384)
    scales = torch.frombuffer(bytearray(message.scales), dtype=torch.float32).reshape(16, 8, 1)
    assert torch.equal(rows * scales, read(verbs.ForwardReply, data).outputs["x"])


def test_strides_and_bits_do_not_depend_on_how_a_tensor_lies() -> None:
    tensor = torch.randn(64, 48)
    one, other = pack(tensor.T.contiguous(), "int8"), pack(tensor.T, "int8")
    assert bytes(one.data) == bytes(other.data)
    assert one.scales == other.scales
    assert unpack(one.dtype, one.shape, one.data, "x", one.scales).shape == (48, 64)
