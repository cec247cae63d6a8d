from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from teaching_protocol import verbs
from teaching_protocol.errors import InvalidSetting, InvalidTensor, MessageTooLarge
from teaching_protocol.tensors import DTYPES
from teaching_protocol.v1 import teacher_pb2, tensor_pb2
from teaching_protocol.wire import METHODS, SERVICE, read, write
from tests.calls import attempt
from tests.unit.teaching_protocol.values import MESSAGES, same, values_of

ROOT = Path(__file__).parents[3]
FAST = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
REQUEST = verbs.ForwardRequest(
    verbs.SessionRef("abc", 3), "call-1", ("answer", "logits"), True, ("message",),
    {"message": torch.arange(12.0).reshape(1, 3, 4), "message_mask": torch.tensor([[True, True, False]])}, "bf16",
)  # fmt: skip


@pytest.mark.parametrize("cls", MESSAGES, ids=lambda cls: cls.__name__)
def test_every_verb_returns_as_it_was(cls: type[Any]) -> None:
    @FAST
    @given(values_of(cls))
    def returns(value: Any) -> None:
        assert same(read(cls, write(value)), value)

    returns()


@pytest.mark.parametrize("cls", MESSAGES, ids=lambda cls: cls.__name__)
def test_the_bytes_are_standard_protobuf(cls: type[Any]) -> None:
    standard = getattr(teacher_pb2, cls.__name__)

    @FAST
    @given(values_of(cls))
    def standard_reads_ours_and_we_read_standards(value: Any) -> None:
        message = standard.FromString(write(value))
        assert not message.DiscardUnknownFields()
        assert same(read(cls, message.SerializeToString()), value)
        assert message == standard.FromString(message.SerializeToString())

    standard_reads_ours_and_we_read_standards()


def test_a_standard_reader_sees_every_field() -> None:
    message = teacher_pb2.ForwardRequest.FromString(write(REQUEST))
    assert (message.session.session_id, message.session.epoch, message.call_id) == ("abc", 3, "call-1")
    assert list(message.outputs) == ["answer", "logits"]
    assert message.compression == tensor_pb2.COMPRESSION_BF16
    tensor = message.inputs["message"]
    assert (tensor.dtype, list(tensor.shape)) == (tensor_pb2.DTYPE_FLOAT32, [1, 3, 4])
    assert tensor.data == np.arange(12, dtype="<f4").tobytes()


def test_fields_in_any_order_and_unknown_fields() -> None:
    shapes = [b"\x12\x02\x01\x03", b"\x10\x01\x10\x03"]  # packed, and one by one as an old writer does
    for shape in shapes:
        tensor = b"\x1a\x03abc" + b"\x7a\x02hi" + shape + b"\x08\x07"  # data, unknown 15, shape, dtype
        entry = b"\x12" + bytes([len(tensor)]) + tensor + b"\x0a\x01x"  # value before key
        data = b"\x32" + bytes([len(entry)]) + entry + b"\x12\x01c" + b"\xa0\x06\x07" + b"\xa5\x06\1\2\3\4"
        assert teacher_pb2.ForwardRequest.FromString(data).inputs["x"].data == b"abc"
        found = read(verbs.ForwardRequest, data)
        assert found.call_id == "c"
        assert same(found.inputs["x"], torch.tensor([[97, 98, 99]], dtype=torch.uint8))


def test_a_received_tensor_lies_inside_the_received_bytes() -> None:
    data = write(REQUEST)
    start = np.frombuffer(data, np.uint8).ctypes.data
    for tensor in read(verbs.ForwardRequest, data).inputs.values():
        assert start <= tensor.data_ptr()
        assert tensor.data_ptr() + tensor.nbytes <= start + len(data)


def test_the_limit() -> None:
    size = len(write(REQUEST))
    assert len(write(REQUEST, None, size)) == size
    with pytest.raises(MessageTooLarge, match=f"ForwardRequest is {size} bytes, the limit is {size - 1}; send fewer"):
        write(REQUEST, None, size - 1)


def test_compression_shrinks_floats_only() -> None:
    found = read(verbs.ForwardRequest, write(REQUEST, "bf16"))
    assert found.inputs["message"].dtype == torch.bfloat16
    assert found.inputs["message_mask"].dtype == torch.bool


def test_truncated_anywhere() -> None:
    data = write(REQUEST)
    whole = read(verbs.ForwardRequest, data)
    for size in range(len(data)):
        found = attempt(lambda size=size: read(verbs.ForwardRequest, data[:size]))
        if isinstance(found, verbs.ForwardRequest):  # cut between two fields: a message with fewer of them
            assert found.inputs.keys() < whole.inputs.keys()
        else:
            assert isinstance(found, InvalidTensor)


def test_a_flipped_byte_anywhere() -> None:
    data = write(REQUEST)
    for place in range(len(data)):
        for flip in (0x01, 0x80, 0xFF):
            changed = bytearray(data)
            changed[place] ^= flip
            found = attempt(lambda changed=bytes(changed): read(verbs.ForwardRequest, changed))
            assert isinstance(found, verbs.ForwardRequest | InvalidTensor | InvalidSetting)


@pytest.mark.parametrize("cls", [verbs.ForwardRequest, verbs.BackwardReply, verbs.EnrollRequest], ids=str)
def test_random_bytes(cls: type[Any]) -> None:
    field = st.tuples(st.integers(0, 63), st.sampled_from([0, 1, 2, 3, 5, 7]), st.binary(max_size=12)).map(
        lambda each: bytes([(each[0] << 3 | each[1]) & 0x7F]) + bytes([len(each[2])]) + each[2]
    )

    @settings(max_examples=250, deadline=None)
    @given(st.binary(max_size=60) | st.lists(field, max_size=5).map(b"".join))
    @example(b"\x32\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01")
    @example(b"\x00")
    @example(b"\x30\x05")
    def gives_a_value_or_a_typed_error(data: bytes) -> None:
        assert isinstance(attempt(lambda: read(cls, data)), (cls, InvalidTensor, InvalidSetting))

    gives_a_value_or_a_typed_error()


def test_an_unknown_compression_is_named() -> None:
    with pytest.raises(InvalidSetting, match="unknown compression 'zip'; use one of none, bf16, fp16, int8"):
        write(dataclasses.replace(REQUEST, compression="zip"))
    message = teacher_pb2.ForwardRequest(compression=9)  # type: ignore[arg-type]
    with pytest.raises(InvalidSetting, match="unknown compression number 9"):
        read(verbs.ForwardRequest, message.SerializeToString())


@pytest.mark.parametrize("cls", [*MESSAGES, verbs.SessionRef, verbs.Limits, verbs.SessionSettings], ids=str)
def test_dataclass_and_message_have_the_same_fields(cls: type[Any]) -> None:
    descriptor = getattr(teacher_pb2, cls.__name__).DESCRIPTOR
    assert [field.name for field in dataclasses.fields(cls)] == [field.name for field in descriptor.fields] or {
        field.name for field in dataclasses.fields(cls)
    } == set(descriptor.fields_by_name)


def test_every_rpc_and_every_dtype_is_known() -> None:
    service = teacher_pb2.DESCRIPTOR.services_by_name["Teacher"]
    assert SERVICE == "teaching_protocol.v1.Teacher"
    found = {(rpc.name, rpc.input_type.name, rpc.output_type.name) for rpc in service.methods}
    assert found == {(method.name, method.request.__name__, method.reply.__name__) for method in METHODS}
    assert {method.verb for method in METHODS} == {name for name in vars(verbs.TeacherVerbs) if name[0] != "_"}
    assert sorted([*DTYPES.values(), tensor_pb2.DTYPE_INT8_ROWS]) == sorted(tensor_pb2.DType.values())[1:]


def test_generated_code_is_what_protoc_gives(tmp_path: Path) -> None:
    protos = sorted((ROOT / "protos").rglob("*.proto"))
    assert len(protos) == 3
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{ROOT / 'protos'}", f"--python_out={tmp_path}"]
    command += [f"--pyi_out={tmp_path}", *map(str, protos)]
    subprocess.run(command, check=True, timeout=60)
    for made in sorted(tmp_path.rglob("*.py*")):
        committed = ROOT / made.relative_to(tmp_path)
        assert committed.read_text() == made.read_text(), f"{committed} differs; run `make proto`"
