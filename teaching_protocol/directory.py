"""Where the replicas of a teacher serve, as values and as protobuf bytes; knows no gRPC, and nothing of how they are found."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from google.protobuf.message import DecodeError

from teaching_protocol.errors import InvalidTensor
from teaching_protocol.v1 import directory_pb2

__all__ = ["DIRECTORY", "RESOLVE", "Replica", "ReplicaState", "is_question", "read_replicas", "write_replicas"]

ReplicaState = Literal["serving", "draining"]

DIRECTORY = directory_pb2.DESCRIPTOR.services_by_name["Directory"].full_name
RESOLVE = f"/{DIRECTORY}/Resolve"
"""The HTTP/2 path of the RPC."""

_MOST, _TEXT, _REPLY_BYTES, _ASKED_BYTES = 4096, 300, 2**22, 2**10
_STATES = {"serving": directory_pb2.REPLICA_STATE_SERVING, "draining": directory_pb2.REPLICA_STATE_DRAINING}


@dataclass(frozen=True)
class Replica:
    """One replica of a teacher, as `Replica` of `directory.proto`.

    Attributes:
        name: of its place in the fleet; stays when the replica is started anew, at whatever address.
        address: `host:port` where it serves.
        state: a draining one finishes what it has and opens no session.
        queue_s: seconds a call waited for the engine lately, in the mean.
        sessions: that it has.
    """

    name: str
    address: str
    state: ReplicaState = "serving"
    queue_s: float = 0.0
    sessions: int = 0


def write_replicas(replicas: Sequence[Replica]) -> bytes:
    """The bytes of a ResolveReply."""
    reply = directory_pb2.ResolveReply()
    for each in replicas:
        reply.replicas.add(
            name=each.name,
            address=each.address,
            state=_STATES[each.state],
            queue_s=each.queue_s,
            sessions=each.sessions,
        )
    return reply.SerializeToString()


def read_replicas(data: bytes) -> tuple[Replica, ...]:
    """The replicas of a ResolveReply; those in a state that this side does not know are passed over.

    Raises:
        InvalidTensor: bytes that are no such reply, or more and longer ones than any honest directory has.
    """
    if len(data) > _REPLY_BYTES:
        raise InvalidTensor(f"a ResolveReply of {len(data)} bytes was received, the limit is {_REPLY_BYTES}")
    try:
        reply = directory_pb2.ResolveReply.FromString(data)
    except DecodeError as error:
        raise InvalidTensor(f"the bytes received are no ResolveReply: {error}") from error
    states = {number: name for name, number in zip(get_args(ReplicaState), _STATES.values(), strict=True)}
    found = tuple(
        Replica(each.name, each.address, states[each.state], each.queue_s, each.sessions)
        for each in reply.replicas
        if each.state in states
    )
    if len(found) > _MOST or any(not _is_sane(each) for each in found):
        raise InvalidTensor(
            f"a ResolveReply of {len(found)} replicas was received, expected {_MOST} at most, each with a name and an address "
            f"of 1 to {_TEXT} characters"
        )
    return found


def is_question(data: bytes) -> bool:
    """Whether bytes are a ResolveRequest; it has no fields, and those of later versions are passed over."""
    if len(data) > _ASKED_BYTES:
        return False
    try:
        directory_pb2.ResolveRequest.FromString(data)
    except DecodeError:
        return False
    return True


def _is_sane(replica: Replica) -> bool:
    texts = all(0 < len(text) <= _TEXT and text.isprintable() for text in (replica.name, replica.address))
    return texts and math.isfinite(replica.queue_s) and replica.queue_s >= 0 and replica.sessions >= 0
