"""The error tree both sides share; knows no gRPC: each class names its status as a string.

TeachingError
├── CallerError              what was asked cannot be done; asking again changes nothing
│   ├── InvalidTensor            dtype, shape or size does not fit
│   ├── NonFiniteError           NaN or infinity in a message or a gradient
│   ├── MessageTooLarge          over the server's size limit
│   ├── UnknownPort              a port this teacher does not serve
│   ├── InvalidSetting           a setting out of range, or settings that exclude each other
│   ├── Unauthenticated          the server does not know who calls: no token, a wrong one, a bad certificate
│   ├── PermissionDenied         the server knows who calls, and the thing is another's
│   ├── SessionNotFound          no such session (never opened, left, or lost with a restart)
│   ├── LeaseExpired             the session ended for want of calls
│   ├── StaleEpoch               the session was resumed by somebody else
│   ├── StudentNameTaken         another live session has this student name
│   ├── UnknownCall              Backward for a Forward the session never made
│   ├── CallFinished             Backward for a Forward whose Backward is done
│   ├── CallConflict             a call id used again with another body
│   ├── StaleCall                Backward for a Forward made before the last Step
│   ├── InputsNeeded             the server let go of the inputs; send them again
│   ├── StepOutOfOrder           Step with another number than the next one
│   ├── RankLost                 a process of a student of several failed, or did not come in time
│   ├── StateMismatch            exported state that does not fit this session or teacher
│   ├── IncompatibleTeacher      the teacher does not serve what the student needs
│   ├── Quarantined              the student's calls failed too often; refused for `retry_after_s`
│   ├── ConfigError              a configuration that cannot be read or used
│   ├── DataError                a data file or its rows cannot be used
│   ├── UnsupportedFamily        a model family without an adapter
│   ├── ModelLoadError           a model that does not load
│   └── PortInUse                the address is taken
└── ServiceError             the service could not; asking again may help
    ├── Overloaded               every permit is taken; retry after `retry_after_s`
    │   └── QuotaExceeded            the student takes more than it may; retry after `retry_after_s`
    ├── Draining                 the server is shutting down
    ├── TeacherUnavailable       nobody answers at the address
    ├── DeadlineExceeded         the answer did not come in time
    ├── CallCancelled            the caller went away
    ├── OutOfMemory              the device has no room for this call
    ├── SharedMemoryLost         a message in memory the server does not share; send the message itself
    └── InternalError            a bug; the id finds it in the server's log
"""

from __future__ import annotations

__all__ = [
    "ERRORS",
    "CallCancelled",
    "CallConflict",
    "CallFinished",
    "CallerError",
    "ConfigError",
    "DataError",
    "DeadlineExceeded",
    "Draining",
    "IncompatibleTeacher",
    "InputsNeeded",
    "InternalError",
    "InvalidSetting",
    "InvalidTensor",
    "LeaseExpired",
    "MessageTooLarge",
    "ModelLoadError",
    "NonFiniteError",
    "OutOfMemory",
    "Overloaded",
    "PermissionDenied",
    "PortInUse",
    "Quarantined",
    "QuotaExceeded",
    "RankLost",
    "ServiceError",
    "SessionNotFound",
    "SharedMemoryLost",
    "StaleCall",
    "StaleEpoch",
    "StateMismatch",
    "StepOutOfOrder",
    "StudentNameTaken",
    "TeacherUnavailable",
    "TeachingError",
    "Unauthenticated",
    "UnknownCall",
    "UnknownPort",
    "UnsupportedFamily",
]


class TeachingError(Exception):
    """Root of the tree. `status` is the name of the gRPC status that carries the class."""

    status = "UNKNOWN"
    retry_after_s: float = 0.0


class CallerError(TeachingError):
    """What was asked cannot be done; asking again changes nothing."""

    status = "INVALID_ARGUMENT"


class InvalidTensor(CallerError):
    """A tensor whose dtype, shape or size does not fit."""


class NonFiniteError(CallerError):
    """NaN or infinity in a message or a gradient."""


class MessageTooLarge(CallerError):
    """A request or reply over the size limit."""

    status = "OUT_OF_RANGE"


class UnknownPort(CallerError):
    """A port this teacher does not serve."""


class InvalidSetting(CallerError):
    """A setting out of range, or settings that exclude each other."""


class Unauthenticated(CallerError):
    """Who calls is not known: no token, a wrong or revoked one, or TLS found a certificate that it does not trust."""

    status = "UNAUTHENTICATED"


class PermissionDenied(CallerError):
    """The caller is known, and may not do this: the session is another's, or the identity was revoked."""

    status = "PERMISSION_DENIED"


class SessionNotFound(CallerError):
    """No such session: never opened, left, or lost with a restart."""

    status = "NOT_FOUND"


class LeaseExpired(SessionNotFound):
    """The session ended for want of calls."""


class StaleEpoch(CallerError):
    """The session was resumed by somebody else; this client is fenced off."""

    status = "ABORTED"


class StudentNameTaken(CallerError):
    """Another live session has this student name."""

    status = "ALREADY_EXISTS"


class UnknownCall(CallerError):
    """Backward for a Forward the session never made, or made without `backward_follows`."""

    status = "NOT_FOUND"


class CallFinished(CallerError):
    """Backward for a Forward whose Backward is done."""

    status = "FAILED_PRECONDITION"


class CallConflict(CallerError):
    """A call id used again with another body."""

    status = "ALREADY_EXISTS"


class StaleCall(CallerError):
    """Backward for a Forward made before the last Step or Import."""

    status = "FAILED_PRECONDITION"


class InputsNeeded(CallerError):
    """The server let go of the inputs of this Forward; send them again with the Backward."""

    status = "FAILED_PRECONDITION"


class StepOutOfOrder(CallerError):
    """Step with another number than the next one."""

    status = "FAILED_PRECONDITION"


class RankLost(CallerError):
    """One of the processes that train one student failed, or did not come in time; the others cannot go on without it."""

    status = "ABORTED"


class StateMismatch(CallerError):
    """Exported state that does not fit this session or this teacher."""

    status = "FAILED_PRECONDITION"


class IncompatibleTeacher(CallerError):
    """The teacher does not serve what the student needs."""

    status = "FAILED_PRECONDITION"


class Quarantined(CallerError):
    """The student's calls failed too often; it is refused until `retry_after_s` have passed."""

    status = "FAILED_PRECONDITION"

    def __init__(self, message: str = "", retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class ConfigError(CallerError):
    """A configuration that cannot be read or used."""


class DataError(CallerError):
    """A data file or its rows cannot be used."""


class UnsupportedFamily(CallerError):
    """A model family without an adapter."""

    status = "UNIMPLEMENTED"


class ModelLoadError(CallerError):
    """A model that does not load."""


class PortInUse(CallerError):
    """The address to bind is taken."""

    status = "FAILED_PRECONDITION"


class ServiceError(TeachingError):
    """The service could not do it; asking again may help."""

    status = "UNAVAILABLE"


class Overloaded(ServiceError):
    """Every permit is taken. `retry_after_s` says when to come back."""

    status = "RESOURCE_EXHAUSTED"

    def __init__(self, message: str = "", retry_after_s: float = 0.1) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class QuotaExceeded(Overloaded):
    """The student takes more than it may. `retry_after_s` says when to come back."""


class Draining(ServiceError):
    """The server is shutting down and takes nothing new."""


class TeacherUnavailable(ServiceError):
    """Nobody answers at the address, or the connection broke in mid-call."""


class DeadlineExceeded(ServiceError):
    """The answer did not come in time."""

    status = "DEADLINE_EXCEEDED"


class CallCancelled(ServiceError):
    """The caller went away before the answer was ready."""

    status = "CANCELLED"


class OutOfMemory(ServiceError):
    """The device has no room for this call."""

    status = "RESOURCE_EXHAUSTED"


class SharedMemoryLost(ServiceError):
    """The request lies in memory that this server does not share; send the message itself."""


class InternalError(ServiceError):
    """A bug on the server. The id in the text finds it in the server's log."""

    status = "INTERNAL"


def _tree(root: type[TeachingError]) -> dict[str, type[TeachingError]]:
    found = {root.__name__: root}
    for child in root.__subclasses__():
        found |= _tree(child)
    return found


ERRORS: dict[str, type[TeachingError]] = _tree(TeachingError)
"""Every class of the tree by its name, as it travels in the error's metadata."""
