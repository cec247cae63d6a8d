"""A client of protocol version 1.0, from bytes that were recorded then, against the server of now: it hears the same."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import Message
from safetensors.torch import load

from teaching_protocol.v1 import teacher_pb2, tensor_pb2
from teaching_protocol.wire import METHODS
from tests.integration.recording import Line, ask, serving

RECORDED = Path(__file__).parents[1] / "data/protocol-v1.0"
PACKAGE = "teaching_protocol.v1"
FREE = {"session_id", "queue_s", "compute_s", "same_host"}
"""What may differ from one day to the next, whatever the version."""
DTYPES = {1: torch.float32, 2: torch.float16, 3: torch.bfloat16, 4: torch.int64, 6: torch.bool, 8: torch.int8}


@pytest.fixture(scope="module")
def messages() -> dict[str, type[Message]]:
    """The messages as version 1.0 knew them; not those of now."""
    pool, files = descriptor_pool.DescriptorPool(), recorded_files()
    for file in files:
        pool.Add(file)
    return {
        each.name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{PACKAGE}.{each.name}"))
        for file in files
        for each in file.message_type
    }


@pytest.fixture(scope="module")
def channel() -> Iterator[grpc.Channel]:
    with serving(RECORDED / "teacher") as found:
        yield found


def recorded_files() -> list[descriptor_pb2.FileDescriptorProto]:
    return list(descriptor_pb2.FileDescriptorSet.FromString((RECORDED / "descriptors.binpb").read_bytes()).file)


def compare(place: str, then: Any, now: Any) -> None:
    """Every field that was set then says the same now; lists may have more at any place."""
    if then.DESCRIPTOR.name == "Tensor":
        compare_tensors(place, then, now)
        return
    for field, value in then.ListFields():
        other, name = getattr(now, field.name), f"{place}.{field.name}"
        if field.name in FREE:
            assert bool(other) == bool(value), name
        elif field.name == "state":
            compare_states(name, value, other)
        elif field.message_type is not None and field.message_type.GetOptions().map_entry:
            assert set(value) == set(other), name
            for key in value:
                compare(f"{name}[{key}]", value[key], other[key])
        elif field.is_repeated:
            numbers = field.type == field.TYPE_INT64
            assert list(value) == list(other) if numbers else set(value) <= set(other), name
        elif field.message_type is not None:
            compare(name, value, other)
        elif isinstance(value, float):
            assert other == pytest.approx(value, rel=1e-4), name
        else:
            assert other == value, name


def compare_tensors(place: str, then: Any, now: Any) -> None:
    assert (then.dtype, list(then.shape)) == (now.dtype, list(now.shape)), place
    found = [numbers(each) for each in (now, then)]
    loose = 1e-4 if then.dtype in (1, 4, 6) else 2e-2
    torch.testing.assert_close(*found, atol=loose, rtol=loose, msg=lambda said: f"{place}: {said}")


def numbers(tensor: Any) -> torch.Tensor:
    """Read by hand, from what docs/protocol.md says."""
    found = torch.frombuffer(bytearray(tensor.data), dtype=DTYPES[tensor.dtype]).reshape(list(tensor.shape)).float()
    if tensor.scales:
        scales = torch.frombuffer(bytearray(tensor.scales), dtype=torch.float32)
        found = found * scales.reshape(*found.shape[:-1], 1)
    return found


def compare_states(place: str, then: bytes, now: bytes) -> None:
    """An exported session: every tensor there was, with its numbers."""
    was, found = load(then), load(now)
    assert set(was) <= set(found), place
    for name, value in was.items():
        torch.testing.assert_close(found[name], value, atol=1e-5, rtol=1e-4, msg=lambda said: f"{place}: {said}")


def test_every_rpc_is_recorded_and_recorded_files_are_read() -> None:
    methods = {method.name for file in recorded_files() for each in file.service for method in each.method}
    assert {line.method for line in Line.all(RECORDED)} == methods
    assert methods <= {method.name for method in METHODS}


def test_a_client_of_version_1_0_hears_what_it_heard_then(
    channel: grpc.Channel, messages: dict[str, type[Message]]
) -> None:
    """Its bytes as they were, its own reading of the replies; the states it exported then are taken in."""
    ids: tuple[bytes, bytes] = b"", b""
    for line in Line.all(RECORDED):
        reply = messages[f"{line.method}Reply"]
        heard = reply.FromString(ask(channel, line.method, line.request.replace(*ids) if ids[0] else line.request))
        recorded = reply.FromString(line.reply)
        if line.method == "Enroll":
            old, new = (each.session.session_id.encode() for each in (recorded, heard))  # type: ignore[attr-defined]
            assert len(old) == len(new), "ids of another length would not fit the recorded bytes"
            ids = old, new
        compare(line.method, recorded, heard)


def test_no_field_enum_or_rpc_of_version_1_0_is_gone_or_means_another_thing() -> None:
    now = {module.DESCRIPTOR.name: module.DESCRIPTOR for module in (tensor_pb2, teacher_pb2)}
    for then in recorded_files():
        current = descriptor_pb2.FileDescriptorProto()
        now[then.name].CopyToProto(current)
        for kind, parts in (("message_type", "field"), ("enum_type", "value"), ("service", "method")):
            known = {each.name: each for each in getattr(current, kind)}
            for each in getattr(then, kind):
                found = {part.name: part.SerializeToString() for part in getattr(known[each.name], parts)}
                for part in getattr(each, parts):
                    assert found.get(part.name) == part.SerializeToString(), f"{each.name}.{part.name}"


def test_the_comparison_sees_a_difference(messages: dict[str, type[Message]]) -> None:
    """Of a number, a tensor, a name that is gone, a state."""
    for line in Line.all(RECORDED):
        reply = messages[f"{line.method}Reply"]
        changed = [reply.FromString(line.reply) for _ in range(2)]
        if line.method == "Step":
            changed[1].grad_norm *= 1.01  # type: ignore[attr-defined]
        elif line.method == "Forward":
            changed[1].outputs["answer"].data = bytes(len(changed[0].outputs["answer"].data))  # type: ignore[attr-defined]
        elif line.method == "Describe":
            del changed[1].output_ports[0]  # type: ignore[attr-defined]
        else:
            continue
        with pytest.raises(AssertionError):
            compare(line.method, *changed)
