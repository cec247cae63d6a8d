"""The seam to the teacher: the nine verbs over gRPC, with deadline, retry and typed errors.

A `TeacherVerbs` in this process fits the same seam. Knows no autograd and no session.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, cast

import grpc
import tenacity

from teaching_protocol import verbs
from teaching_protocol.channel import channel_options, error_from
from teaching_protocol.errors import (
    CallCancelled,
    DeadlineExceeded,
    InternalError,
    MessageTooLarge,
    Overloaded,
    ServiceError,
    TeacherUnavailable,
    TeachingError,
)
from teaching_protocol.verbs import Call
from teaching_protocol.wire import METHODS, Method, read, write

__all__ = ["GrpcTransport"]

_RETRIED = (Overloaded, TeacherUnavailable)
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.05, 2.0
_CHANNEL_BYTES = 2**31 - 1  # the server's own limit is on its card


class GrpcTransport:
    """The verbs of the teacher at `address`.

    Every call has a deadline. Within it a refused connection or an overload is tried again, after the
    delay the server asked for or with exponential backoff, both jittered: calls carry ids, so
    that one that did arrive has no second effect.

    Args:
        address: `host:port`.
        compression: how float tensors travel to the teacher: none | bf16 | fp16.
        patience_s: how long a teacher that is down is waited for, within the call's deadline.
    """

    def __init__(self, address: str, compression: str = "bf16", patience_s: float = 10.0) -> None:
        self.address = address
        self.compression = compression
        self.patience_s = patience_s
        self.message_bytes = _CHANNEL_BYTES
        self.bytes_sent = self.bytes_received = 0
        self._channel = grpc.insecure_channel(address, options=channel_options(_CHANNEL_BYTES))
        self._stubs = {method.verb: self._stub(method) for method in METHODS}

    def describe(self, request: verbs.DescribeRequest, call: Call) -> verbs.DescribeReply:
        """The teacher's card."""
        return cast(verbs.DescribeReply, self._send("describe", request, call))

    def enroll(self, request: verbs.EnrollRequest, call: Call) -> verbs.EnrollReply:
        """Opens or resumes a session."""
        return cast(verbs.EnrollReply, self._send("enroll", request, call))

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
        self._channel.close()

    def _stub(self, method: Method) -> tuple[Method, Callable[..., bytes]]:
        return method, self._channel.unary_unary(method.path)

    def _send(self, verb: str, request: Any, call: Call) -> Any:
        method, stub = self._stubs[verb]
        deadline = call.deadline if call.deadline is not None else time.monotonic() + 60.0
        data = write(request, self.compression, self.message_bytes)
        patience = time.monotonic() + self.patience_s
        for attempt in tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(_RETRIED),
            wait=_wait,
            stop=lambda state: (
                time.monotonic() + _wait(state) > (deadline if _overloaded(state) else min(deadline, patience))
            ),
            reraise=True,
        ):
            with attempt:
                self.bytes_sent += len(data)
                reply = self._once(stub, data, deadline)
                self.bytes_received += len(reply)
        return read(method.reply, reply)

    def _once(self, stub: Callable[..., bytes], data: bytes, deadline: float) -> bytes:
        try:
            return stub(data, timeout=max(0.001, deadline - time.monotonic()))
        except grpc.RpcError as error:
            raise self._typed(error) from error
        except ValueError as error:  # gRPC's word for a channel that was closed
            raise CallCancelled(f"the connection to {self.address} is closed; make a new teacher") from error

    def _typed(self, error: Any) -> TeachingError:
        details = error.details() or ""
        known = error_from(tuple(error.trailing_metadata() or ()), details)
        if known is not None:
            return known
        code = error.code()
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return DeadlineExceeded(
                f"the teacher at {self.address} did not answer in time; it may be busy, or raise deadline_s"
            )
        if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in details:
            return MessageTooLarge(
                f"the teacher at {self.address} refused the size: {details}; send fewer rows or tokens"
            )
        if code is grpc.StatusCode.UNAVAILABLE:
            return TeacherUnavailable(
                f"no teacher answers at {self.address} ({details}); start one there, or check the address"
            )
        if code is grpc.StatusCode.CANCELLED:
            return CallCancelled(f"the call to {self.address} was cancelled: {details}")
        if code is grpc.StatusCode.UNIMPLEMENTED:
            return InternalError(f"what answers at {self.address} is no teacher of this protocol: {details}")
        return InternalError(f"the teacher at {self.address} failed with {code.name}: {details}")


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
