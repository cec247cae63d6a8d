"""The verbs of a teacher as plain values: one frozen dataclass a request and a reply.

Field for field the messages of `teacher.proto`, with torch tensors in place of wire tensors, so
that a teacher in the same process is called without packing anything. Knows no gRPC, no protobuf.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Protocol

import torch

from teaching_protocol.settings import Limits, OptimizerSettings, SessionRef, SessionSettings

__all__ = [
    "PROTOCOL_VERSION",
    "BackwardReply",
    "BackwardRequest",
    "Call",
    "DescribeReply",
    "DescribeRequest",
    "EnrollReply",
    "EnrollRequest",
    "ExportReply",
    "ExportRequest",
    "ForwardReply",
    "ForwardRequest",
    "ImportReply",
    "ImportRequest",
    "LeaveReply",
    "LeaveRequest",
    "Limits",
    "OptimizerSettings",
    "RenewReply",
    "RenewRequest",
    "SessionRef",
    "SessionSettings",
    "StepReply",
    "StepRequest",
    "TeacherVerbs",
    "Tensors",
    "has_gradient",
]

PROTOCOL_VERSION = 1
"""The version on a teacher's card; a client refuses another one."""

Tensors = Mapping[str, torch.Tensor]
"""Tensors by port."""

_WITHOUT_GRADIENT = ("attention_mask", "hidden", "last_hidden_state", "logits", "logprobs", "pooled", "tokens")
_NO_TENSORS: Tensors = MappingProxyType({})


def has_gradient(port: str) -> bool:
    """Whether an output port depends on the message or the codec; what the teacher knows about x does not."""
    return port.partition(".")[0] not in _WITHOUT_GRADIENT


@dataclass(frozen=True)
class DescribeRequest:
    """Asks for the teacher's card."""


@dataclass(frozen=True)
class DescribeReply:
    """The teacher's card. `widths[l]` is the width of the hidden states at cut `l`.

    `same_host` is where clients of the same host share memory with the server, or empty.
    """

    protocol_version: int = PROTOCOL_VERSION
    model_name: str = ""
    model_hash: str = ""
    family: str = ""
    layers: int = 0
    widths: tuple[int, ...] = ()
    entry: int = 0
    exit: int = 0
    vocabulary_size: int = 0
    tokenizer_hash: str = ""
    heads: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    input_ports: tuple[str, ...] = ()
    output_ports: tuple[str, ...] = ()
    compressions: tuple[str, ...] = ()
    dtype: str = "float32"
    deterministic: bool = False
    limits: Limits = Limits()
    same_host: str = ""
    parameters: int = 0
    weight_bytes: int = 0
    head_hash: str = ""


@dataclass(frozen=True)
class EnrollRequest:
    """Opens a session for `student`, or takes over the live session whose id is `resume`.

    A repeated `call_id` gets the session that the first one opened.
    """

    student: str = ""
    settings: SessionSettings = SessionSettings()
    resume: str = field(default="", repr=False)
    state: bytes = b""
    call_id: str = ""


@dataclass(frozen=True)
class EnrollReply:
    """The session, its lease in seconds, its step, the number of its codec's parameters, its settings."""

    session: SessionRef = SessionRef()
    lease_s: float = 0.0
    step: int = 0
    parameters: int = 0
    settings: SessionSettings = SessionSettings()


@dataclass(frozen=True)
class ForwardRequest:
    """Named inputs, the outputs asked for, and whether (and for which inputs) a Backward follows."""

    session: SessionRef = SessionRef()
    call_id: str = ""
    outputs: tuple[str, ...] = ()
    backward_follows: bool = False
    grad_inputs: tuple[str, ...] = ()
    inputs: Tensors = field(default_factory=lambda: _NO_TENSORS)
    compression: str = "none"
    rank: int = 0


@dataclass(frozen=True)
class ForwardReply:
    """The outputs, and the seconds the job waited and ran: its share of its batch's."""

    queue_s: float = 0.0
    compute_s: float = 0.0
    outputs: Tensors = field(default_factory=lambda: _NO_TENSORS)


@dataclass(frozen=True)
class BackwardRequest:
    """Gradients of outputs of the Forward `forward_id`; after `InputsNeeded` its inputs again."""

    session: SessionRef = SessionRef()
    call_id: str = ""
    forward_id: str = ""
    grads: Tensors = field(default_factory=lambda: _NO_TENSORS)
    outputs: tuple[str, ...] = ()
    grad_inputs: tuple[str, ...] = ()
    inputs: Tensors = field(default_factory=lambda: _NO_TENSORS)
    compression: str = "none"
    rank: int = 0


@dataclass(frozen=True)
class BackwardReply:
    """Gradients of the inputs named in `grad_inputs`, and the seconds waited and run, as of a Forward."""

    queue_s: float = 0.0
    compute_s: float = 0.0
    grads: Tensors = field(default_factory=lambda: _NO_TENSORS)


@dataclass(frozen=True)
class StepRequest:
    """Applies the gathered codec gradients times `grad_scale`, clipped to `max_grad_norm` (0: not).

    With several ranks each sends its own, and the mean of their gradients, weighted by `rows`, is applied when all are in.
    """

    session: SessionRef = SessionRef()
    step: int = 0
    lr: float = 0.0
    grad_scale: float = 1.0
    max_grad_norm: float = 0.0
    rank: int = 0
    rows: int = 0


@dataclass(frozen=True)
class StepReply:
    """The session's step, and the gradient norm after scaling and before clipping."""

    step: int = 0
    grad_norm: float = 0.0


@dataclass(frozen=True)
class ExportRequest:
    """Asks for the session's whole state."""

    session: SessionRef = SessionRef()


@dataclass(frozen=True)
class ExportReply:
    """The session's whole state as safetensors bytes."""

    state: bytes = b""
    step: int = 0


@dataclass(frozen=True)
class ImportRequest:
    """Replaces the session's state, once for a `call_id`: under a new epoch, if it still stands at `step`. Without an id, as is."""

    session: SessionRef = SessionRef()
    state: bytes = b""
    call_id: str = ""
    step: int = 0


@dataclass(frozen=True)
class ImportReply:
    """The step the imported state stands at, and the session under its new epoch."""

    step: int = 0
    session: SessionRef = SessionRef()


@dataclass(frozen=True)
class RenewRequest:
    """Renews the lease."""

    session: SessionRef = SessionRef()


@dataclass(frozen=True)
class RenewReply:
    """The lease in seconds from now."""

    lease_s: float = 0.0


@dataclass(frozen=True)
class LeaveRequest:
    """Ends the session."""

    session: SessionRef = SessionRef()


@dataclass(frozen=True)
class LeaveReply:
    """The session is gone and so is all it held."""


@dataclass(frozen=True)
class Call:
    """How one call is made: its absolute deadline on `time.monotonic()`'s clock, or None.

    `cancelled` is set by the network when the caller has gone away. `identity` is who calls, as the server has proven it; empty
    where nobody is asked. A client sets none.
    """

    deadline: float | None = None
    cancelled: threading.Event = field(default_factory=threading.Event)
    identity: str = ""


class TeacherVerbs(Protocol):
    """A teacher, wherever it is: behind gRPC or in this process. One method a verb.

    Every method raises classes of `teaching_protocol.errors` and nothing else.
    """

    def describe(self, request: DescribeRequest, call: Call) -> DescribeReply:
        """See the RPC of this name in `teacher.proto`."""
        ...

    def enroll(self, request: EnrollRequest, call: Call) -> EnrollReply:
        """See the RPC of this name in `teacher.proto`."""
        ...

    def forward(self, request: ForwardRequest, call: Call) -> ForwardReply:
        """See the RPC of this name in `teacher.proto`."""
        ...

    def backward(self, request: BackwardRequest, call: Call) -> BackwardReply:
        """See the RPC of this name in `teacher.proto`."""
        ...

    def step(self, request: StepRequest, call: Call) -> StepReply:
        """See the RPC of this name in `teacher.proto`."""
        ...

    def export(self, request: ExportRequest, call: Call) -> ExportReply:
        """See the RPC of this name in `teacher.proto`."""
        ...

    def import_(self, request: ImportRequest, call: Call) -> ImportReply:
        """See the RPC of this name in `teacher.proto`."""
        ...

    def renew(self, request: RenewRequest, call: Call) -> RenewReply:
        """See the RPC of this name in `teacher.proto`."""
        ...

    def leave(self, request: LeaveRequest, call: Call) -> LeaveReply:
        """See the RPC of this name in `teacher.proto`."""
        ...
