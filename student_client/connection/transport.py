"""The seam to the teacher: the nine verbs over gRPC, with deadline, retry and typed errors.

A `TeacherVerbs` in this process fits the same seam. Knows no autograd and no session.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import grpc
import tenacity

from student_client.connection.credentials import Credentials
from student_client.connection.route import Route
from student_client.connection.same_host import SharedBlocks
from student_client.connection.statuses import typed
from teaching_protocol import verbs
from teaching_protocol.channel import CLOCK_KEY, channel_options
from teaching_protocol.errors import (
    CallCancelled,
    InternalError,
    Overloaded,
    ServiceError,
    SharedMemoryLost,
    TeacherUnavailable,
)
from teaching_protocol.int8 import Int8Rules
from teaching_protocol.shared_memory import SHARED_KEY
from teaching_protocol.tracing import Tracing
from teaching_protocol.verbs import Call
from teaching_protocol.wire import METHODS, Method, Piece, pieces, read

__all__ = ["GrpcTransport", "Int8Account"]

_log = logging.getLogger(__name__)

T = TypeVar("T")
Stub = Any  # grpc's callable of one RPC
Metadata = tuple[tuple[str, str], ...]

_RETRIED = (Overloaded, SharedMemoryLost, TeacherUnavailable)
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.05, 2.0
_CALL_S = 60.0  # of a call that brings no deadline
_SHORT_PATIENCE_S = 1.0  # where another replica can be asked
_CHANNEL_BYTES = 2**31 - 1  # the server's own limit is on its card


@dataclass
class Int8Account:
    """What became of the tensors that were to travel as int8: how many did, how many went as bf16, and their errors."""

    address: str
    tensors: int = 0
    fallbacks: int = 0
    error_sum: float = 0.0

    @property
    def mean_error(self) -> float:
        """Mean relative error of the tensors that travelled as int8."""
        return self.error_sum / max(1, self.tensors)

    def note(self, error: float, is_kept: bool) -> None:
        """Counts one tensor; says the first that was too rough."""
        if is_kept:
            self.tensors, self.error_sum = self.tensors + 1, self.error_sum + error
            return
        self.fallbacks += 1
        if self.fallbacks == 1:
            _log.info(
                "a tensor for %s would have had the relative error %.3f as int8; such go as bf16", self.address, error
            )


class GrpcTransport:
    """The verbs of the teacher at `address`.

    Every call has a deadline. Within it a refused connection or an overload is tried again, after the
    delay the server asked for or with exponential backoff, both jittered: calls carry ids, so
    that one that did arrive has no second effect.

    Args:
        address: `host:port`.
        compression: how float tensors travel to the teacher: none | bf16 | fp16 | int8.
        patience_s: how long a teacher that is down is waited for, within the call's deadline.
        shared_memory: whether large messages may go through shared memory, where the teacher is on this host.
        int8_error: largest relative error of a tensor sent as int8; one that has more goes as bf16.
        credentials: who this is and whom it trusts; None is no TLS, and the token of `TEACHER_TOKEN`, if any.
        route: the way among replicas of the same teacher; None goes to `address` alone, or whom that knows of.

    Attributes:
        address: where calls go now.
        bytes_sent, bytes_received, bytes_shared: of all calls, both ways, and those of them that were in shared memory.
        int8: what became of the tensors that were to travel as int8.
        clock_s: the server's clock at the last Describe, seconds since 1970; 0 where it did not say.
        tracing: makes spans of calls; at first none.
    """

    def __init__(
        self,
        address: str,
        compression: str = "bf16",
        patience_s: float = 10.0,
        shared_memory: bool = True,
        int8_error: float = Int8Rules.error_limit,
        credentials: Credentials | None = None,
        route: Route | None = None,
    ) -> None:
        self.route = route or Route((address,), credentials=credentials)
        self.address = self.route.place.address
        self.compression = compression
        self.patience_s = patience_s
        self.message_bytes = _CHANNEL_BYTES
        self.shared_memory = shared_memory
        self.bytes_sent = self.bytes_received = self.bytes_shared = 0
        self.int8 = Int8Account(address)
        self.clock_s = 0.0
        self.tracing = Tracing()
        self._int8 = Int8Rules(int8_error, self.int8.note)
        self._blocks = SharedBlocks()
        self._reply_bytes: dict[str, int] = {}  # the largest of each verb
        self._credentials = credentials or Credentials()
        self._connect()

    def move_on(self) -> None:
        """Opens a new connection: to the next replica of its route, or to the only one. Calls under way are cancelled.

        Raises:
            CallerError: a directory refuses this student.
        """
        self.route.move_on()
        self._go()

    def move_if_better(self) -> bool:
        """Connects to the replica that `route.look` has found to be better, if it has; calls under way are cancelled."""
        if not self.route.take_better():
            return False
        self._go()
        return True

    def go_to(self, address: str) -> None:
        """Opens a new connection to an address, unless calls go there already. Calls under way are cancelled."""
        self.route.stay_at(address)
        if address != self.address:
            self._go()

    def describe(self, request: verbs.DescribeRequest, call: Call) -> verbs.DescribeReply:
        """The teacher's card. Where it says that the teacher is on this host, memory is shared from now on."""
        card = cast(verbs.DescribeReply, self._send("describe", request, call, self._look))
        if self.shared_memory:
            is_shared = self._blocks.connect(card.same_host)
            way = (
                "shared memory, where they are large"
                if is_shared
                else "the connection: it shares no memory with this host"
            )
            _log.info("messages to the teacher at %s go through %s", self.address, way)
        return card

    def enroll(self, request: verbs.EnrollRequest, call: Call) -> verbs.EnrollReply:
        """Opens or resumes a session."""
        reply = cast(verbs.EnrollReply, self._send("enroll", request, call))
        self.route.arrived()
        return reply

    def forward(self, request: verbs.ForwardRequest, call: Call) -> verbs.ForwardReply:
        """Named inputs to named outputs."""
        return cast(verbs.ForwardReply, self._send("forward", request, call))

    def backward(self, request: verbs.BackwardRequest, call: Call) -> verbs.BackwardReply:
        """Gradients of outputs to gradients of inputs."""
        return cast(verbs.BackwardReply, self._send("backward", request, call))

    def step(self, request: verbs.StepRequest, call: Call) -> verbs.StepReply:
        """Applies the gathered codec gradients."""
        return cast(verbs.StepReply, self._send("step", request, call))

    def export(self, request: verbs.ExportRequest, call: Call) -> verbs.ExportReply:
        """The session's whole state."""
        return cast(verbs.ExportReply, self._send("export", request, call))

    def import_(self, request: verbs.ImportRequest, call: Call) -> verbs.ImportReply:
        """Replaces the session's state."""
        return cast(verbs.ImportReply, self._send("import_", request, call))

    def renew(self, request: verbs.RenewRequest, call: Call) -> verbs.RenewReply:
        """Renews the lease."""
        return cast(verbs.RenewReply, self._send("renew", request, call))

    def leave(self, request: verbs.LeaveRequest, call: Call) -> verbs.LeaveReply:
        """Ends the session."""
        return cast(verbs.LeaveReply, self._send("leave", request, call))

    def close(self) -> None:
        """Closes the connection."""
        self._blocks.close()
        self._channel.close()

    def _look(self) -> None:
        """Before every try until somebody has said who serves: a directory may come up meanwhile, and is no teacher itself."""
        if self.route.find():
            self._go()

    def _go(self) -> None:
        """A new connection, to where the route leads now."""
        self.close()
        self.address = self.route.place.address
        self._connect()

    def _connect(self) -> None:
        self._channel = self._credentials.channel(self.address, channel_options(_CHANNEL_BYTES))
        self._stubs = {method.verb: self._stub(method) for method in METHODS}

    def _stub(self, method: Method) -> tuple[Method, Stub]:
        return method, self._channel.unary_unary(method.path)

    def _send(self, verb: str, request: Any, call: Call, before: Callable[[], None] = lambda: None) -> Any:
        """The reply to a request; `before` comes before every try."""
        (method, _), deadline = self._stubs[verb], _deadline(call)
        with self.tracing.call(method.name) as traced:
            data = pieces(request, self.compression, self.message_bytes, self._int8)

            def once() -> Piece:
                before()
                return self._exchange(verb, data, deadline, traced)

            return read(method.reply, self._persist(once, deadline))

    def _persist(self, job: Callable[[], T], deadline: float) -> T:
        """What a job gives, tried again while that may help: a teacher that is down for as long as its patience lasts."""
        began = time.monotonic()

        def limit(state: tenacity.RetryCallState) -> float:
            short = min(self.patience_s, _SHORT_PATIENCE_S) if self.route.has_others else self.patience_s
            return deadline if _overloaded(state) else min(deadline, began + short)

        for attempt in tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(_RETRIED),
            wait=_wait,
            stop=lambda state: time.monotonic() + _wait(state) > limit(state),
            reraise=True,
        ):
            with attempt:
                found = job()
        return found

    def _exchange(self, verb: str, data: list[Piece], deadline: float, traced: Metadata) -> Piece:
        _, stub = self._stubs[verb]
        size_bytes = sum(map(len, data))
        self.bytes_sent += size_bytes
        reply: Piece
        with self._blocks.leased(max(size_bytes, self._reply_bytes.get(verb, 0))) as lease:
            if lease is None:
                reply, _ = self._once(stub, b"".join(data), deadline, traced)
            else:
                place = str(lease.put(data))
                reply, shared = self._once(stub, b"", deadline, ((SHARED_KEY, place), *traced))
                shared_bytes = _size(shared)
                if shared_bytes:
                    reply = lease.reply(shared_bytes)
                else:
                    lease.end()
                self.bytes_shared += size_bytes + shared_bytes
        self.bytes_received += len(reply)
        self._reply_bytes[verb] = max(len(reply), self._reply_bytes.get(verb, 0))
        return reply

    def _once(self, stub: Stub, data: bytes, deadline: float, metadata: Metadata) -> tuple[bytes, str]:
        """One try: the reply that came with the call, and what the server says of one in the shared block."""
        try:
            sent = (*metadata, *self._credentials.metadata())
            reply, answered = stub.with_call(data, timeout=max(0.001, deadline - time.monotonic()), metadata=sent)
            told = dict(answered.trailing_metadata() or ())
            if CLOCK_KEY in told:
                self.clock_s = _clock(told[CLOCK_KEY])
            return reply, told.get(SHARED_KEY, "0") if metadata else "0"
        except grpc.RpcError as error:
            raise typed(error, self.address, self._credentials.uses_tls) from error
        except ValueError as error:  # gRPC's word for a channel that was closed
            raise CallCancelled(f"the connection to {self.address} is closed; make a new teacher") from error


def _deadline(call: Call) -> float:
    return call.deadline if call.deadline is not None else time.monotonic() + _CALL_S


def _size(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise InternalError(f"the teacher says that {text[:80]!r} bytes of its reply are in shared memory") from None


def _clock(text: str) -> float:
    """0 for what is no number: a clock that is told wrong costs nobody a call."""
    try:
        return float(text)
    except ValueError:
        return 0.0


def _wait(state: tenacity.RetryCallState) -> float:
    """Seconds until the next try: never before the server said, then anywhere in a time that doubles; or backoff.

    The spread is as wide as the delay asked for at first: those who were refused together do not come back together.
    """
    error = state.outcome.exception() if state.outcome is not None else None
    asked = error.retry_after_s if isinstance(error, ServiceError) else 0.0
    doubled: float = 2.0 ** min(state.attempt_number - 1, 16)
    if asked:
        return asked + min(asked * doubled, max(asked, _LONGEST_WAIT_S)) * _spread(state)
    backoff = min(_LONGEST_WAIT_S, _FIRST_WAIT_S * doubled)
    return backoff * (0.5 + 0.5 * _spread(state))


def _spread(state: tenacity.RetryCallState) -> float:
    """Jitter in [0, 1) that is the same for one try however often it is asked, and differs between clients."""
    return (hash((state.start_time, state.attempt_number)) % 1000) / 1000


def _overloaded(state: tenacity.RetryCallState) -> bool:
    return state.outcome is not None and isinstance(state.outcome.exception(), Overloaded)
