"""A call of gRPC that failed as one of the error tree, with what to do; makes no call."""

from __future__ import annotations

from typing import Any

import grpc

from teaching_protocol.channel import error_from, wrong_port
from teaching_protocol.errors import (
    CallCancelled,
    DeadlineExceeded,
    InternalError,
    MessageTooLarge,
    TeacherUnavailable,
    TeachingError,
    Unauthenticated,
)

__all__ = ["typed"]

# what gRPC says of a TLS handshake that failed for good
_DISTRUST = (
    "CERTIFICATE_VERIFY_FAILED",
    "Hostname Verification",
    "CERTIFICATE_REQUIRED",
    "ALERT_",
    "WRONG_VERSION_NUMBER",
)


def typed(error: Any, address: str, uses_tls: bool) -> TeachingError:
    """What a call of gRPC that failed comes to: the error that the server sent, or one for the status.

    Args:
        error: gRPC's own.
        address: where the call went.
        uses_tls: whether the connection is encrypted.
    """
    details = error.details() or ""
    known = error_from(tuple(error.trailing_metadata() or ()), details)
    if known is not None:
        return known
    code = error.code()
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return DeadlineExceeded(f"the teacher at {address} did not answer in time; it may be busy, or raise deadline_s")
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in details:
        return MessageTooLarge(f"the teacher at {address} refused the size: {details}; send fewer rows or tokens")
    if code is grpc.StatusCode.UNAVAILABLE and any(mark in details for mark in _DISTRUST):
        return Unauthenticated(
            f"the teacher at {address} and this student do not trust each other's certificates ({details[-300:]}); "
            "check teacher.ca, the name in the teacher's certificate (or teacher.server_name), the dates, and whether "
            "it asks for a certificate of yours (teacher.cert, teacher.key)"
        )
    if code is grpc.StatusCode.UNAVAILABLE and wrong_port(details):
        return TeacherUnavailable(f"no teacher answers at {address}: {wrong_port(details)}")
    if code is grpc.StatusCode.UNAVAILABLE:
        # a server that refuses a client's certificate hangs up as one that goes away does
        hint = "; if one is there, it refuses your certificate (teacher.cert)" if uses_tls else ""
        return TeacherUnavailable(
            f"no teacher answers at {address} ({details}); start one there, or check the address{hint}"
        )
    if code is grpc.StatusCode.CANCELLED:
        return CallCancelled(f"the call to {address} was cancelled: {details}")
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return InternalError(f"what answers at {address} is no teacher of this protocol: {details}")
    return InternalError(f"the teacher at {address} failed with {code.name}: {details}")
