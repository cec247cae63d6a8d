"""Another server asked from outside as any client would: its card, its verbs; knows no server of this process."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc

from teaching_protocol import verbs
from teaching_protocol.channel import (
    CLOCK_KEY,
    TOKEN_KEY,
    TOKEN_SCHEME,
    channel_options,
    check_address,
    error_from,
    wrong_port,
)
from teaching_protocol.diagnosis.connection import Door
from teaching_protocol.errors import ConfigError, DeadlineExceeded, InternalError, TeacherUnavailable, TeachingError
from teaching_protocol.verbs import Call
from teaching_protocol.wire import LARGEST, METHODS, Method, read, write

__all__ = ["OtherTeacher", "ask_for_card", "other_teacher"]

_CALL_S = 60.0


def ask_for_card(
    address: str, timeout_s: float, ca: Path | None, cert: Path | None, key: Path | None
) -> verbs.DescribeReply:
    """Asks the teacher at `address`, with the token in TEACHER_TOKEN if there is one.

    Raises:
        TeachingError: nobody answers, or the server refuses.
        ConfigError: an address that is none, files that cannot be used.
    """
    with other_teacher(address, ca, cert, key) as teacher:
        card: verbs.DescribeReply = teacher.describe(verbs.DescribeRequest(), Call(time.monotonic() + timeout_s))
    return card


@contextmanager
def other_teacher(address: str, ca: Path | None, cert: Path | None, key: Path | None) -> Iterator[OtherTeacher]:
    """A connection to the teacher at `address` while it is open.

    Raises:
        ConfigError: files that cannot be read.
    """
    with _channel(address, ca, cert, key) as channel:
        yield OtherTeacher(address, channel, has_trust=ca is not None or address.startswith("127."))


class OtherTeacher:
    """The verbs of `TeacherVerbs` on a channel: one try each, until the call's deadline; nothing is compressed or shared.

    Attributes:
        clock_s: the server's clock at the last Describe, seconds since 1970; 0 where it did not say.
    """

    def __init__(self, address: str, channel: grpc.Channel, has_trust: bool) -> None:
        token = os.environ.get("TEACHER_TOKEN", "").strip()
        self.channel = channel
        self.clock_s = 0.0
        self._address = address
        self._metadata = ((TOKEN_KEY, f"{TOKEN_SCHEME} {token}"),) if token and has_trust else ()
        self._methods = {method.verb: method for method in METHODS}

    def __getattr__(self, verb: str) -> Callable[[Any, Call], Any]:
        """A verb of `TeacherVerbs` by its name."""
        if verb.startswith("_") or verb not in self._methods:
            raise AttributeError(verb)
        return lambda request, call: self._ask(self._methods[verb], request, call)

    def _ask(self, method: Method, request: Any, call: Call) -> Any:
        limit_s = _CALL_S if call.deadline is None else max(0.001, call.deadline - time.monotonic())
        data = write(request, getattr(request, "compression", None))
        try:
            ask: Any = self.channel.unary_unary(method.path)
            reply, answered = ask.with_call(data, timeout=limit_s, metadata=self._metadata)
        except grpc.RpcError as failure:
            raise self._typed(failure) from failure
        with contextlib.suppress(ValueError):  # told wrong it costs nobody a call
            self.clock_s = float(dict(answered.trailing_metadata() or ()).get(CLOCK_KEY, self.clock_s))
        return read(method.reply, reply)

    def _typed(self, error: Any) -> TeachingError:
        known = error_from(tuple(error.trailing_metadata() or ()), error.details() or "")
        if known is not None:
            return known
        code = error.code()
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return DeadlineExceeded(f"the teacher at {self._address} did not answer in time; it is busy, or stuck")
        if code is grpc.StatusCode.UNIMPLEMENTED:
            return InternalError(f"what answers at {self._address} is no teacher of this protocol; check the port")
        if wrong := wrong_port(error.details() or ""):
            return TeacherUnavailable(f"no teacher answers at {self._address}: {wrong}")
        return TeacherUnavailable(
            f"no teacher answers at {self._address} ({code.name}); start one there, or check the address, --ca and --cert"
        )


def _channel(address: str, ca: Path | None, cert: Path | None, key: Path | None) -> grpc.Channel:
    check_address(address)
    options = channel_options(LARGEST)
    if (cert is None) != (key is None) or (cert is not None and ca is None):
        raise ConfigError("--cert and --key go together, and need --ca, which turns TLS on; give all three, or none")
    if ca is None:
        return grpc.insecure_channel(address, options=options)
    Door(address, True, ca, cert, key).context(verified=True)  # gRPC itself says nothing of files that are no PEM
    parts = [None if path is None else path.read_bytes() for path in (ca, key, cert)]
    return grpc.secure_channel(address, grpc.ssl_channel_credentials(*parts), options=options)
