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
from teaching_protocol.int8 import Int8Rules
from teaching_protocol.tensors import PackedTensor, pack, unpack
from teaching_protocol.v1 import teacher_pb2, tensor_pb2

__all__ = ["LARGEST", "METHODS", "SERVICE", "Method", "Piece", "pieces", "read", "write"]

V = TypeVar("V")

Piece = bytes | memoryview
"""Bytes of a message, or the memory where they lie."""
LARGEST = 2**31 - 1
"""Bytes of the largest message that protobuf and gRPC can carry."""

_INT8 = Int8Rules()

SERVICE = teacher_pb2.DESCRIPTOR.services_by_name["Teacher"].full_name
"""Full name of the service."""


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
"""Every RPC, in the order of the service."""

_LEN = 2  # protobuf's wire type for length-delimited fields
_VARINT_BYTES = 10  # of a 64-bit number
_DATA, _SCALES = 3, 4  # field numbers of Tensor.data and Tensor.scales
_KEY, _VALUE = 1, 2  # field numbers of a map entry
_MOST_FIELDS, _MOST_TENSORS = 2**16, 256  # of a message
_SMALL_BYTES = 2**20  # of a message without tensors and state
_SHAPE_BYTES, _NAME_BYTES = 256, 2**15  # of one tensor


def write(value: Any, compression: str | None = None, limit_bytes: int = LARGEST) -> bytes:
    """Gives the protobuf bytes of a request or reply; see `pieces`."""
    return b"".join(pieces(value, compression, limit_bytes))


def pieces(
    value: Any, compression: str | None = None, limit_bytes: int = LARGEST, int8: Int8Rules | None = None
) -> list[Piece]:
    """Gives the protobuf bytes of a request or reply of `teaching_protocol.verbs` in pieces, one behind the other.

    The tensors' pieces are their own memory, where nothing had to be cast: write them before it changes.

    Args:
        value: one of the frozen dataclasses of `verbs`.
        compression: how float tensors travel; None leaves each tensor's dtype.
        limit_bytes: the largest message the other side accepts.
        int8: which tensors may travel as int8 rows, and who hears of it.

    Raises:
        InvalidTensor: a tensor the wire does not carry.
        MessageTooLarge: more than `limit_bytes`.
    """
    message = _message_class(type(value).__name__)()
    _fill(message, value)
    found: list[Piece] = [message.SerializeToString()]
    for field in _fields_of(type(value).__name__):
        if field.tensors:
            for name, tensor in getattr(value, field.name).items():
                found += _tensor_entry(field.number, name, pack(tensor, compression, int8 or _INT8))
    size_bytes = sum(map(len, found))
    if size_bytes > limit_bytes:
        raise MessageTooLarge(
            f"{type(value).__name__} is {size_bytes} bytes, the limit is {limit_bytes}; send fewer rows or tokens"
        )
    return found


def read(cls: type[V], data: Piece) -> V:
    """Gives the request or reply that `data` holds; its tensors lie over `data` itself.

    Raises:
        InvalidTensor: bytes that are no such message, a tensor that is none, or more fields, tensors or text than any
            honest message has: found while walking over the bytes, before anything is built from them.
        InvalidSetting: an enum number this side does not know.
    """
    message_class = _message_class(cls.__name__)
    maps = {field.number: field.name for field in _fields_of(cls.__name__) if field.tensors}
    try:
        tensors: dict[int, dict[str, torch.Tensor]] = {number: {} for number in maps}
        rest, entries = _parted(memoryview(data), maps, cls)
        for number, entry in entries:
            name, tensor = _read_entry(entry)
            tensors[number][name] = tensor
        message = message_class.FromString(rest)
    except (DecodeError, IndexError, UnicodeDecodeError) as error:
        raise InvalidTensor(f"the bytes received are no {cls.__name__}: {error}") from error
    values: dict[str, Any] = {maps[number]: found for number, found in tensors.items()}
    return cls(**values, **_values(cls, message))


def _parted(data: memoryview, maps: Mapping[int, str], cls: type[Any]) -> tuple[bytes, list[tuple[int, memoryview]]]:
    """The small fields of a message, and the entries of its tensor maps where they lie."""
    small: list[memoryview] = []
    entries: list[tuple[int, memoryview]] = []
    for count, (number, start, body, end) in enumerate(_fields(data)):
        if count >= _MOST_FIELDS or len(entries) > _MOST_TENSORS:
            raise DecodeError(f"more than {_MOST_FIELDS} fields or {_MOST_TENSORS} tensors")
        if number in maps:
            entries.append((number, data[body:end]))
        else:
            small.append(data[start:end])
    size_bytes = sum(map(len, small))
    if size_bytes > _SMALL_BYTES and not any(field.blob for field in _fields_of(cls.__name__)):
        raise DecodeError(f"{size_bytes} bytes beside its tensors, the limit is {_SMALL_BYTES}")
    return b"".join(small), entries


def _tensor_entry(number: int, name: str, packed: PackedTensor) -> list[Piece]:
    small = tensor_pb2.Tensor(dtype=packed.dtype, shape=packed.shape, scales=packed.scales)  # type: ignore[arg-type]
    meta = small.SerializeToString()
    meta += _tag(_DATA) + _varint(len(packed.data))
    value_bytes = len(meta) + len(packed.data)
    key = name.encode()
    head = _tag(_KEY) + _varint(len(key)) + key + _tag(_VALUE) + _varint(value_bytes)
    return [_tag(number) + _varint(len(head) + value_bytes), head + meta, packed.data]


def _read_entry(entry: memoryview) -> tuple[str, torch.Tensor]:
    name, value = "", memoryview(b"")
    for number, _, body, end in _fields(entry):
        if number == _KEY:
            if end - body > _NAME_BYTES:
                raise DecodeError(f"a port's name of {end - body} bytes")
            name = str(entry[body:end], "utf-8")
        elif number == _VALUE:
            value = entry[body:end]
    payload = scales = memoryview(b"")
    rest = bytearray()
    for number, start, body, end in _fields(value):
        if number == _DATA:
            payload = value[body:end]
        elif number == _SCALES:
            scales = value[body:end]
        elif len(rest) + end - start > _SHAPE_BYTES:
            raise DecodeError(f"a tensor whose shape takes more than {_SHAPE_BYTES} bytes")
        else:
            rest += value[start:end]
    meta = tensor_pb2.Tensor.FromString(bytes(rest))
    return name, unpack(int(meta.dtype), tuple(meta.shape), payload, name, scales)


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


@dataclasses.dataclass(frozen=True)
class _Field:
    """One field of a value beside its protobuf field: what `write` and `read` ask of it, found once."""

    name: str
    number: int
    enum: Any
    part: Any
    repeated: bool
    tensors: bool
    blob: bool


@functools.cache
def _fields_of(name: str) -> tuple[_Field, ...]:
    cls = getattr(verbs, name)
    hints, descriptor = typing.get_type_hints(cls), _message_class(name).DESCRIPTOR
    found = []
    for field in dataclasses.fields(cls):
        wire, hint = descriptor.fields_by_name[field.name], hints[field.name]
        part: Any = hint if dataclasses.is_dataclass(hint) else None
        tensors = wire.message_type is not None and wire.message_type.GetOptions().map_entry
        repeated = part is None and not isinstance(hint, type)
        found.append(_Field(field.name, wire.number, wire.enum_type, part, repeated, tensors, hint is bytes))
    return tuple(found)


def _fill(message: Message, value: Any) -> None:
    for field in _fields_of(type(value).__name__):
        item = getattr(value, field.name)
        if field.tensors:
            continue
        if field.part is not None:
            part = getattr(message, field.name)
            part.SetInParent()
            _fill(part, item)
        elif field.repeated:
            getattr(message, field.name).extend(item if field.enum is None else [_number(field.enum, e) for e in item])
        else:
            setattr(message, field.name, item if field.enum is None else _number(field.enum, item))


def _values(cls: type[Any], message: Message) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for field in _fields_of(cls.__name__):
        if field.tensors:
            continue
        item = getattr(message, field.name)
        if field.part is not None:
            found[field.name] = field.part(**_values(field.part, item))
        elif field.repeated:
            found[field.name] = tuple(item if field.enum is None else [_name(field.enum, each) for each in item])
        else:
            found[field.name] = item if field.enum is None else _name(field.enum, item)
    return found


def _number(enum: Any, item: str) -> int:
    known = _numbers(enum)
    if item not in known:
        raise InvalidSetting(f"unknown {enum.name.lower()} {item!r}; use one of {', '.join(known)}")
    return known[item]


def _name(enum: Any, number: int) -> str:
    if number not in enum.values_by_number:
        raise InvalidSetting(f"unknown {enum.name.lower()} number {number}")
    return _names(enum)[number]


@functools.cache
def _numbers(enum: Any) -> dict[str, int]:
    return {name: number for number, name in _names(enum).items() if number}


@functools.cache
def _names(enum: Any) -> dict[int, str]:
    prefix = f"{enum.name.upper()}_"
    return {each.number: each.name.removeprefix(prefix).lower() if each.number else "none" for each in enum.values}


@functools.cache
def _message_class(name: str) -> type[Message]:
    found: type[Message] = getattr(teacher_pb2, name)
    return found
