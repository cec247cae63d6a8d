"""What is fed with bytes: the unpacker, as a server reads requests, and the import of a session's state."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from random import Random
from typing import Any

import torch

from teacher_server.sessions.codecs import CodecShape, TeacherCodec
from teacher_server.sessions.optimizers import build_optimizer
from teacher_server.sessions.replies import Replies
from teacher_server.sessions.sessions import Session
from teacher_server.sessions.state import export_state, import_state
from teaching_protocol import verbs
from teaching_protocol.errors import InternalError, TeachingError
from teaching_protocol.tensors import is_finite
from teaching_protocol.verbs import OptimizerSettings, SessionRef, SessionSettings
from teaching_protocol.wire import METHODS, read, write
from tests.fuzz.mutation import mutated

__all__ = ["TARGETS", "Feed", "outcome"]

Feed = Callable[[Random], tuple[bytes, Callable[[], None]]]
"""Gives the next input, and what is done with it: that returns, or raises an error of the tree."""

_HASH = "a" * 64


def _unpacking() -> Feed:
    """Any request, at any message class."""
    ref = SessionRef("5e" * 16, 1)
    tensors = {
        "message": torch.linspace(-1, 1, 96).reshape(2, 3, 16),
        "message_mask": torch.ones(2, 3, dtype=torch.bool),
        "input_ids": torch.arange(12).reshape(2, 6),
        "empty": torch.empty(0, 3),
    }
    values = [
        verbs.DescribeRequest(),
        verbs.EnrollRequest("ann", SessionSettings(task="t"), "5e", b"state", "call"),
        verbs.ForwardRequest(ref, "call", ("answer", "hidden.2"), True, ("message",), tensors, "bf16"),
        verbs.BackwardRequest(ref, "back", "call", tensors, ("answer",), ("message",), tensors),
        verbs.StepRequest(ref, 1, 0.1, 1.0, 1.0),
        verbs.ExportRequest(ref),
        verbs.ImportRequest(ref, b"state" * 20, "import", 1),
        verbs.RenewRequest(ref),
        verbs.LeaveRequest(ref),
        verbs.ForwardReply(0.1, 0.2, tensors),
    ]
    seeds = [write(value, compression) for value in values for compression in (None, "bf16", "int8")]
    classes = [method.request for method in METHODS] + [verbs.ForwardReply, verbs.DescribeReply, verbs.EnrollReply]

    def feed(random: Random) -> tuple[bytes, Callable[[], None]]:
        data, cls = mutated(seeds, random), random.choice(classes)

        def use() -> None:
            found = read(cls, data)
            for field in dataclasses.fields(found):
                value = getattr(found, field.name)
                if isinstance(value, dict):
                    assert all(isinstance(is_finite(tensor), bool) for tensor in value.values())  # touches every byte

        return data, use

    return feed


def _session(optimizer: str, seed: int) -> Session:
    wishes = SessionSettings(message_width=3, seed=seed, optimizer=OptimizerSettings(optimizer, momentum=0.9))
    codec = TeacherCodec(CodecShape(4, 4, wishes.message_width), seed)
    made = build_optimizer(codec.parameters(), wishes.optimizer)
    found = Session("id", "ann", wishes, codec, made, Replies(100))
    _step(found)
    found.step = 1
    found.gathered = [torch.ones_like(parameter) for parameter in found.parameters()]
    return found


def _step(session: Session) -> None:
    for parameter in session.parameters():
        parameter.grad = torch.ones_like(parameter)
    session.optimizer.step()
    session.optimizer.zero_grad()


def _importing() -> Feed:
    """Exported states, changed anywhere or in their header alone, which stays a header of the length it says."""
    sessions = [_session(name, 0) for name in ("adamw", "sgd")]
    seeds = [export_state(session, _HASH) for session in sessions]
    sizes = [int.from_bytes(seed[:8], "little") for seed in seeds]
    headers = [seed[8 : 8 + size] for seed, size in zip(seeds, sizes, strict=True)]
    facts = [json.loads(header)["__metadata__"]["teaching"].encode() for header in headers]

    def changed(random: Random) -> bytes:
        at, way = random.randrange(len(seeds)), random.random()
        if way < 0.2:
            return mutated(seeds, random)
        tensors = seeds[at][8 + sizes[at] :]
        if way < 0.3:  # other numbers
            start = random.randrange(len(tensors) - 8)
            return seeds[at][: 8 + sizes[at]] + tensors[:start] + random.randbytes(8) + tensors[start + 8 :]
        if way < 0.7:
            header = mutated(headers, random)
        else:  # good JSON around facts that are changed
            known: Any = json.loads(headers[at])
            known["__metadata__"]["teaching"] = mutated(facts, random).decode("utf-8", "replace")
            header = json.dumps(known).encode()
        return len(header).to_bytes(8, "little") + header + tensors

    def feed(random: Random) -> tuple[bytes, Callable[[], None]]:
        data, session = changed(random), random.choice(sessions)

        def use() -> None:
            import_state(session, data, _HASH)
            _step(session)  # what was taken is a state to go on from
            export_state(session, _HASH)

        return data, use

    return feed


def outcome(use: Callable[[], None]) -> str:
    """How one input ended: `ok`, or the name of its error; anything but an error of the tree goes on up."""
    try:
        use()
    except InternalError:
        raise
    except TeachingError as error:
        return type(error).__name__
    return "ok"


TARGETS: dict[str, Callable[[], Feed]] = {"unpack": _unpacking, "state": _importing}
