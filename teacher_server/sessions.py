"""Sessions: one student's codec, optimizer, step, lease and epoch; knows no model and no queue.

The table (`Sessions`) is shared by all threads under one lock; what is inside a `Session` belongs to
the engine thread, but for its lease and epoch, which belong to the table, and the extents of its Forwards, which belong
to the threads that take calls in.
"""

from __future__ import annotations

import functools
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from teacher_server.codecs import TeacherCodec
from teacher_server.replies import Replies
from teacher_server.usage import Usage
from teaching_protocol.errors import (
    LeaseExpired,
    Overloaded,
    PermissionDenied,
    SessionNotFound,
    StaleEpoch,
    StudentNameTaken,
)
from teaching_protocol.verbs import ForwardRequest, SessionRef, SessionSettings

__all__ = ["Extent", "OpenCall", "Session", "Sessions", "account_of", "new_session_id"]

Quota = Callable[[str, int, "Collection[Session]", str], None]

_REMEMBERED_ENDS = 4096
_OPEN_CALLS = 256
_RESUMES = 16


@dataclass(frozen=True)
class Extent:
    """Rows and padded area of a call, and the bucket in which it may meet others'; None runs alone."""

    rows: int = 0
    tokens: int = 0
    bucket: Hashable | None = None


@dataclass
class OpenCall:
    """A Forward whose Backward is to come: `request` is None once its inputs were let go."""

    request: ForwardRequest | None
    size_bytes: int
    finished: bool = False
    stale: bool = False


@dataclass
class Session:
    """One student's session. `gathered` holds the codec gradients since the last Step, `resumes` the epochs that calls to take it over got.

    `size_bytes` is what its codec, gathered gradients and optimizer take. No lease runs out while `at_work` of its
    calls wait or run: a student is not lost for the server's being busy. Nobody but the `owner` reaches it; an empty one is
    everybody, where nobody is asked who they are. `usage` counts what it takes, from any thread.
    """

    id: str = field(repr=False)
    student: str
    settings: SessionSettings
    codec: TeacherCodec
    optimizer: torch.optim.Optimizer
    replies: Replies
    size_bytes: int = 0
    enrolled_by: str = ""
    owner: str = ""
    epoch: int = 1
    resumes: OrderedDict[str, int] = field(default_factory=OrderedDict)
    step: int = 0
    closed: bool = False
    lease_until: float = 0.0
    at_work: int = 0
    calls: OrderedDict[str, OpenCall] = field(default_factory=OrderedDict)
    gathered: list[torch.Tensor | None] = field(default_factory=list)
    extents: OrderedDict[str, Extent] = field(default_factory=OrderedDict)
    usage: Usage = field(default_factory=Usage, repr=False)

    @property
    def ref(self) -> SessionRef:
        """The reference a client presents with each call."""
        return SessionRef(self.id, self.epoch)

    @property
    def account(self) -> str:
        """What quotas, strikes and the rule of one live session a name go by: the student's name, among its owner's own."""
        return account_of(self.owner, self.student)

    def parameters(self) -> list[torch.nn.Parameter]:
        """The codec's parameters, in a fixed order."""
        return list(self._parameters)

    @functools.cached_property
    def _parameters(self) -> tuple[torch.nn.Parameter, ...]:
        return tuple(self.codec.parameters())  # a walk over all modules

    @property
    def input_bytes(self) -> int:
        """Bytes of inputs kept for Backwards to come."""
        return sum(call.size_bytes for call in list(self.calls.values()) if call.request is not None)

    def rise(self, resumed_by: str) -> None:
        """To the next epoch, once for each call that resumes; forgets the oldest of those calls."""
        if resumed_by and self.resumes.get(resumed_by) == self.epoch:
            return
        if resumed_by in self.resumes:
            raise StaleEpoch(
                f"this call resumed the session to epoch {self.resumes[resumed_by]}, it is at {self.epoch}"
            )
        self.epoch += 1
        if resumed_by:
            self.resumes[resumed_by] = self.epoch
        if len(self.resumes) > _RESUMES:
            self.resumes.popitem(last=False)

    def note_extent(self, call_id: str, extent: Extent) -> None:
        """Notes how large a Forward is, for its Backward; lets go of the oldest note beyond the calls remembered."""
        self.extents[call_id] = extent
        if len(self.extents) > _OPEN_CALLS:
            self.extents.popitem(last=False)

    def open_call(self, call_id: str, request: ForwardRequest, size_bytes: int, budget_bytes: int) -> list[str]:
        """Notes a Forward and keeps its inputs; lets go of older inputs beyond the budget.

        Returns:
            the ids of calls now forgotten altogether.
        """
        self.calls[call_id] = OpenCall(request, size_bytes)
        kept = sum(call.size_bytes for call in self.calls.values() if call.request is not None)
        for other in list(self.calls.values())[:-1]:
            if kept <= budget_bytes:
                break
            if other.request is not None:
                kept -= other.size_bytes
                other.request = None
        too_many = max(0, len(self.calls) - _OPEN_CALLS)
        return [self.calls.popitem(last=False)[0] for _ in range(too_many)]


class Sessions:
    """The table of live sessions: leases, epochs and names.

    `quota` is asked, with account, bytes, the live sessions and the owner, whether one more may be opened, and raises if not.
    """

    def __init__(
        self,
        lease_s: float,
        limit: int,
        quota: Quota = lambda account, size_bytes, live, owner: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.lease_s = lease_s
        self.limit = limit
        self._quota = quota
        self._clock = clock
        self._lock = threading.Lock()
        self._live: dict[str, Session] = {}
        self._ended: OrderedDict[str, str] = OrderedDict()

    def __len__(self) -> int:
        return len(self._live)

    def add(self, session: Session) -> Session:
        """Takes a new session in and gives it, or the one that the same call has opened meanwhile.

        Raises:
            StudentNameTaken: a live session has this student name.
            Overloaded: as many sessions live as may. QuotaExceeded: as many as this student's quota allows.
        """
        with self._lock:
            holder = self._holder(session.account, session.enrolled_by)
            if holder is not None:
                return holder
            self._check_room(session.account, session.size_bytes, session.owner)
            session.lease_until = self._clock() + self.lease_s
            self._live[session.id] = session
            return session

    def check_room(self, account: str, size_bytes: int, owner: str) -> None:
        """Refuses a session before it is built, as `add` would: Overloaded or QuotaExceeded."""
        with self._lock:
            self._check_room(account, size_bytes, owner)

    def enrolled(self, account: str, call_id: str) -> Session | None:
        """The live session that this very call has opened before, or None.

        Raises:
            StudentNameTaken: another call has opened a session under this name, which lives.
        """
        with self._lock:
            return self._holder(account, call_id)

    def resume(self, session_id: str, student: str, call_id: str = "", owner: str = "") -> Session:
        """Hands a live session to a new client: its epoch rises, the older client is fenced off.

        The same call again, as its `call_id` tells, gets the same epoch: a repeat fences nobody off.

        Raises:
            SessionNotFound: there is none of this student. PermissionDenied: it is another owner's.
            StaleEpoch: the repeat of a call after which the session was resumed once more.
        """
        with self._lock:
            session = self._find(session_id, owner)
            if session.student != student:
                raise SessionNotFound(f"the session to resume is not one of student {student!r}")
            session.rise(call_id)
            session.lease_until = self._clock() + self.lease_s
            return session

    def get(self, ref: SessionRef, owner: str = "") -> Session:
        """The live session of this reference, if it is this owner's; its lease renewed.

        Raises:
            SessionNotFound: no such session; LeaseExpired if it ended for want of calls.
            PermissionDenied: it is another's. StaleEpoch: the session was resumed by another client since.
        """
        with self._lock:
            session = self._find(ref.session_id, owner)
            if ref.epoch != session.epoch:
                raise StaleEpoch(
                    f"this client holds epoch {ref.epoch} of its session, which is at epoch {session.epoch}: another client "
                    "resumed it; stop this one, or resume the session again"
                )
            session.lease_until = self._clock() + self.lease_s
            return session

    def peek(self, session_id: str) -> Session | None:
        """The live session of this id, whoever asks, for the log; renews nothing."""
        return self._live.get(session_id)

    @contextmanager
    def working(self, session: Session) -> Iterator[None]:
        """A call of the session waits or runs in the `with`; its lease begins anew when that is over."""
        with self._lock:
            session.at_work += 1
        try:
            yield
        finally:
            with self._lock:
                session.at_work -= 1
                session.lease_until = self._clock() + self.lease_s

    def remove(self, session: Session, cause: str) -> bool:
        """Ends a session; false if it had ended already."""
        with self._lock:
            if self._live.pop(session.id, None) is None:
                return False
            session.closed = True
            self._ended[session.id] = cause
            if len(self._ended) > _REMEMBERED_ENDS:
                self._ended.popitem(last=False)
            return True

    def expired(self) -> list[Session]:
        """The live sessions whose lease has run out."""
        with self._lock:
            return [session for session in self._live.values() if not self._is_leased(session)]

    def live(self) -> list[Session]:
        """The live sessions."""
        with self._lock:
            return list(self._live.values())

    def _check_room(self, account: str, size_bytes: int, owner: str) -> None:
        if len(self._live) >= self.limit:
            raise Overloaded(f"{self.limit} sessions are open, which is the limit; try again later", self.lease_s)
        self._quota(account, size_bytes, self._live.values(), owner)

    def _holder(self, account: str, call_id: str) -> Session | None:
        now = self._clock()
        for session in self._live.values():
            if session.account == account and self._is_leased(session):
                if call_id and session.enrolled_by == call_id:
                    return session
                raise StudentNameTaken(
                    f"student {session.student!r} has a live session (its lease ends in {max(0.0, session.lease_until - now):.0f} s); "
                    "choose another name, wait, or resume that session by its id"
                )
        return None

    def _is_leased(self, session: Session) -> bool:
        return session.at_work > 0 or session.lease_until >= self._clock()

    def _find(self, session_id: str, owner: str) -> Session:
        session = self._live.get(session_id)
        if session is not None and session.owner != owner:
            raise PermissionDenied("this session was opened by another identity; use the token it was opened with")
        if session is not None and self._is_leased(session):
            return session
        if session is not None or self._ended.get(session_id) == "lease":
            raise LeaseExpired(
                f"the session's lease of {self.lease_s:.0f} s ran out; enrol again and import your last exported state"
            )
        raise SessionNotFound("no such session: it was never opened, it left, or the server restarted; enrol again")


def account_of(owner: str, student: str) -> str:
    """A student's name among its owner's own; the bare name where nobody is asked who they are."""
    return f"{owner}/{student}" if owner else student


def new_session_id() -> str:
    """An id nobody can guess."""
    return secrets.token_hex(16)
