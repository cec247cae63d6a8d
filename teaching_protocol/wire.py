"""Verbs to protobuf bytes and back, without copying tensors twice; knows no gRPC and no session.

What `write` gives is ordinary protobuf of `teacher.proto`: any standard client reads it, and
`read` reads what any standard client wrote. Only the tensors go another way than through the
protobuf runtime: fields of a message may be joined in any order, so each tensor's tag and
length are written before its own memory (one copy), and read as a slice of the received bytes.
"""

from __future__ import annotations

import dataclasses
import functools
import typing
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import torch
from google.protobuf.message import DecodeError, Message

from teaching_protocol import verbs
from teaching_protocol.errors import InvalidSetting, InvalidTensor, MessageTooLarge
from teaching_protocol.tensors import pack, unpack
from teaching_protocol.v1 import teacher_pb2, tensor_pb2

__all__ = ["METHODS", "SERVICE", "Method", "read", "write"]

V = TypeVar("V")

SERVICE = teacher_pb2.DESCRIPTOR.services_by_name["Teacher"].full_name


@dataclasses.dataclass(frozen=True)
class Method:
    """One RPC: its name on the wire, its attribute of `TeacherVerbs`, its request and reply."""

    name: str
    verb: str
    request: type[Any]
    reply: type[Any]

    @property
    def path(self) -> str:
        """The HTTP/2 path of the RPC."""
        return f"/{SERVICE}/{self.name}"


METHODS: tuple[Method, ...] = (
    Method("Describe", "describe", verbs.DescribeRequest, verbs.DescribeReply),
    Method("Enroll", "enroll", verbs.EnrollRequest, verbs.EnrollReply),
    Method("Forward", "forward", verbs.ForwardRequest, verbs.ForwardReply),
    Method("Backward", "backward", verbs.BackwardRequest, verbs.BackwardReply),
    Method("Step", "step", verbs.StepRequest, verbs.StepReply),
    Method("Export", "export", verbs.ExportRequest, verbs.ExportReply),
    Method("Import", "import_", verbs.ImportRequest, verbs.ImportReply),
    Method("Renew", "renew", verbs.RenewRequest, verbs.RenewReply),
    Method("Leave", "leave", verbs.LeaveRequest, verbs.LeaveReply),
)

_LEN = 2  # protobuf's wire type for length-delimited fields
_VARINT_BYTES = 10  # of a 64-bit number
_DATA = 3  # field number of Tensor.data
_KEY, _VALUE = 1, 2  # field numbers of a map entry


def write(value: Any, compression: str | None = None, limit_bytes: int = 2**31 - 1) -> bytes:
    """Gives the protobuf bytes of a request or reply of `teaching_protocol.verbs`.

    Args:
        value: one of the frozen dataclasses of `verbs`.
        compression: how float tensors travel; None leaves each tensor's dtype.
        limit_bytes: the largest message the other side accepts.

    Raises:
        InvalidTensor: a tensor the wire does not carry.
        MessageTooLarge: more than `limit_bytes`.
    """
    message = _message_class(type(value).__name__)()
    chunks: list[bytes | memoryview] = [b""]
    for field in dataclasses.fields(value):
        item = getattr(value, field.name)
        if isinstance(item, Mapping):
            number = message.DESCRIPTOR.fields_by_name[field.name].number
            for name, tensor in item.items():
                chunks += _tensor_entry(number, name, tensor, compression)
        else:
            _fill(message, field.name, item)
    chunks[0] = message.SerializeToString()
    size_bytes = sum(map(len, chunks))
    if size_bytes > limit_bytes:
        raise MessageTooLarge(
            f"{type(value).__name__} is {size_bytes} bytes, the limit is {limit_bytes}; send fewer rows or tokens"
        )
    return b"".join(chunks)


def read(cls: type[V], data: bytes) -> V:
    """Gives the request or reply that `data` holds; its tensors lie over `data` itself.

    Raises:
        InvalidTensor: bytes that are no such message, or a tensor that is none.
        InvalidSetting: an enum number this side does not know.
    """
    message_class = _message_class(cls.__name__)
    maps = _tensor_fields(cls.__name__)
    try:
        tensors: dict[int, dict[str, torch.Tensor]] = {number: {} for number in maps}
        rest = bytearray()
        for number, start, body, end in _fields(memoryview(data)):
            if number in tensors:
                name, tensor = _read_entry(memoryview(data)[body:end])
                tensors[number][name] = tensor
            else:
                rest += memoryview(data)[start:end]
        message = message_class.FromString(bytes(rest))
    except (DecodeError, IndexError, UnicodeDecodeError) as error:
        raise InvalidTensor(f"the bytes received are no {cls.__name__}: {error}") from error
    values: dict[str, Any] = {maps[number]: found for number, found in tensors.items()}
    return cls(**values, **_values(cls, message))


def _tensor_entry(number: int, name: str, tensor: torch.Tensor, compression: str | None) -> list[bytes | memoryview]:
    packed = pack(tensor, compression)
    meta = tensor_pb2.Tensor(dtype=packed.dtype, shape=packed.shape).SerializeToString()  # type: ignore[arg-type]
    meta += _tag(_DATA) + _varint(len(packed.data))
    value_bytes = len(meta) + len(packed.data)
    key = name.encode()
    head = _tag(_KEY) + _varint(len(key)) + key + _tag(_VALUE) + _varint(value_bytes)
    return [_tag(number) + _varint(len(head) + value_bytes), head + meta, packed.data]


def _read_entry(entry: memoryview) -> tuple[str, torch.Tensor]:
    name, value = "", memoryview(b"")
    for number, _, body, end in _fields(entry):
        if number == _KEY:
            name = str(entry[body:end], "utf-8")
        elif number == _VALUE:
            value = entry[body:end]
    payload, rest = memoryview(b""), bytearray()
    for number, start, body, end in _fields(value):
        if number == _DATA:
            payload = value[body:end]
        else:
            rest += value[start:end]
    meta = tensor_pb2.Tensor.FromString(bytes(rest))
    return name, unpack(int(meta.dtype), tuple(meta.shape), payload, name)


def _fields(data: memoryview) -> Iterator[tuple[int, int, int, int]]:
    """Walks a message: (number, start of the tag, start of the value, end of the value)."""
    position, size = 0, len(data)
    while position < size:
        start = position
        tag, position = _read_varint(data, position)
        kind, body = tag & 7, position
        if kind == _LEN:
            length, body = _read_varint(data, position)
            position = body + length
        elif kind == 0:
            _, position = _read_varint(data, position)
        elif kind in (1, 5):
            position += 8 if kind == 1 else 4
        else:
            raise DecodeError(f"wire type {kind} at byte {start}")
        if position > size:
            raise DecodeError(f"a field of {position - body} bytes at byte {start}, but {size - body} were received")
        yield tag >> 3, start, body, position


def _tag(number: int) -> bytes:
    return _varint(number << 3 | _LEN)


def _varint(number: int) -> bytes:
    """Protobuf's base-128 number: seven bits a byte, lowest first, the top bit set on all but the last."""
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes((*found, number))


def _read_varint(data: memoryview, position: int) -> tuple[int, int]:
    """The number at `position` and the position behind it."""
    number = 0
    for place in range(_VARINT_BYTES):
        byte = data[position + place]
        number |= (byte & 0x7F) << (7 * place)
        if byte < 0x80:
            return number, position + place + 1
    raise DecodeError(f"a number of more than {_VARINT_BYTES} bytes at byte {position}")


def _fill(message: Message, name: str, item: Any) -> None:
    descriptor = message.DESCRIPTOR.fields_by_name[name]
    if dataclasses.is_dataclass(item):
        part = getattr(message, name)
        part.SetInParent()
        for field in dataclasses.fields(item):
            _fill(part, field.name, getattr(item, field.name))
    elif isinstance(item, tuple):
        getattr(message, name).extend(_number(descriptor.enum_type, each) for each in item)
    else:
        setattr(message, name, _number(descriptor.enum_type, item))


def _values(cls: type[Any], message: Message) -> dict[str, Any]:
    found: dict[str, Any] = {}
    hints = _hints(cls.__name__)
    for field in dataclasses.fields(cls):
        descriptor = message.DESCRIPTOR.fields_by_name[field.name]
        if descriptor.message_type is not None and descriptor.message_type.GetOptions().map_entry:
            continue
        item = getattr(message, field.name)
        if dataclasses.is_dataclass(hints[field.name]):
            part = hints[field.name]
            found[field.name] = part(**_values(part, item))
        elif isinstance(hints[field.name], type):
            found[field.name] = _name(descriptor.enum_type, item)
        else:
            found[field.name] = tuple(_name(descriptor.enum_type, each) for each in item)
    return found


def _number(enum: Any, item: Any) -> Any:
    if enum is None:
        return item
    known = {_name(enum, value.number): value.number for value in enum.values}
    if item not in known:
        raise InvalidSetting(f"unknown {enum.name.lower()} {item!r}; use one of {', '.join(known)}")
    return known[item]


def _name(enum: Any, item: Any) -> Any:
    if enum is None:
        return item
    value = enum.values_by_number.get(item)
    if value is None:
        raise InvalidSetting(f"unknown {enum.name.lower()} number {item}")
    return "none" if item == 0 else value.name.removeprefix(f"{enum.name.upper()}_").lower()


@functools.cache
def _hints(name: str) -> dict[str, Any]:
    return typing.get_type_hints(getattr(verbs, name))


@functools.cache
def _message_class(name: str) -> type[Message]:
    found: type[Message] = getattr(teacher_pb2, name)
    return found


@functools.cache
def _tensor_fields(name: str) -> dict[int, str]:
    descriptor = _message_class(name).DESCRIPTOR
    return {
        field.number: field.name
        for field in descriptor.fields
        if field.message_type is not None and field.message_type.GetOptions().map_entry
    }
