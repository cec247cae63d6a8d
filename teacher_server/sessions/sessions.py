"""Sessions: one student's codec, optimizer, step, lease and epoch; knows no model and no queue.

The table (`Sessions`) is shared by all threads under one lock; what is inside a `Session` belongs to
the engine thread that runs its job, but for its lease, which belongs to the table, and the extents of its Forwards, which belong
to the threads that take calls in. The epoch belongs to who holds the session at rest.
"""

from __future__ import annotations

import functools
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from teacher_server.metrics.usage import Usage
from teacher_server.sessions.calls import Extent, Grads, OpenCall, added
from teacher_server.sessions.codecs import TeacherCodec
from teacher_server.sessions.replies import Replies
from teacher_server.sessions.roll import Roll
from teaching_protocol.errors import (
    DeadlineExceeded,
    LeaseExpired,
    Overloaded,
    PermissionDenied,
    SessionNotFound,
    StaleEpoch,
    StudentNameTaken,
)
from teaching_protocol.verbs import ForwardRequest, SessionRef, SessionSettings

__all__ = ["Extent", "Grads", "OpenCall", "Session", "Sessions", "account_of", "added", "new_session_id"]

Quota = Callable[[str, int, "Collection[Session]", str], None]

_REMEMBERED_ENDS = 4096
_OPEN_CALLS = 256
_RISEN = 16
_REST_S = 60.0


@dataclass
class Session:
    """One student's session. `gathered_by` holds the codec gradients since the last Step by rank, `risen` the epochs that calls began.

    `size_bytes` is what its codec, gathered gradients and optimizer take. No lease runs out while `at_work` of its
    calls wait or run: a student is not lost for the server's being busy. Nobody but the `owner` reaches it; an empty one is
    everybody, where nobody is asked who they are. `at_rest` is held while a batch works on the session, and while its epoch rises:
    nothing of an earlier epoch runs on into a later one. `usage` counts what it takes, from any thread.
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
    risen: OrderedDict[str, int] = field(default_factory=OrderedDict)
    step: int = 0
    closed: bool = False
    lease_until: float = 0.0
    at_work: int = 0
    calls: OrderedDict[str, OpenCall] = field(default_factory=OrderedDict)
    gathered_by: dict[int, Grads] = field(default_factory=dict)
    roll: Roll = field(default_factory=Roll, repr=False)
    extents: OrderedDict[str, Extent] = field(default_factory=OrderedDict)
    at_rest: threading.Lock = field(default_factory=threading.Lock, repr=False)
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
    def gathered(self) -> Grads:
        """Rank 0's codec gradients since the last Step: all there are, unless several ranks share the session."""
        return self.gathered_by.get(0, [])

    @gathered.setter
    def gathered(self, grads: Grads) -> None:
        self.gathered_by = {0: grads} if grads else {}

    @property
    def is_mid_step(self) -> bool:
        """Whether a step is begun: gradients are gathered, or a Forward has its Backward to come."""
        return bool(self.gathered_by) or any(not call.finished and not call.stale for call in list(self.calls.values()))

    @property
    def input_bytes(self) -> int:
        """Bytes of inputs kept for Backwards to come."""
        return sum(call.size_bytes for call in list(self.calls.values()) if call.request is not None)

    def rise(self, call_id: str) -> None:
        """To the next epoch, once for each call; forgets the oldest of those calls. The session is held at rest."""
        if call_id and self.risen.get(call_id) == self.epoch:
            return
        if call_id in self.risen:
            raise StaleEpoch(f"this call brought the session to epoch {self.risen[call_id]}, it is at {self.epoch}")
        self.epoch += 1
        if call_id:
            self.risen[call_id] = self.epoch
        if len(self.risen) > _RISEN:
            self.risen.popitem(last=False)
        self.roll.call_off(StaleEpoch(f"the session came to epoch {self.epoch} while this Step waited for other ranks"))

    def answers_to(self, epoch: int, call_id: str = "") -> bool:
        """Whether a call sent under this epoch may reach it: the present one, or the repeat of the Import that began it."""
        return epoch == self.epoch or (bool(call_id) and epoch + 1 == self.epoch == self.risen.get(call_id))

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
        limit: Callable[[], int],
        quota: Quota = lambda account, size_bytes, live, owner: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.lease_s = lease_s
        self._limit = limit
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

    def resume(
        self, session_id: str, student: str, call_id: str = "", owner: str = "", deadline: float | None = None
    ) -> Session:
        """Hands a live session to a new client: its epoch rises, the older client is fenced off.

        What works on the session at this moment is waited for. The same call again, as its `call_id` tells, gets the same
        epoch: a repeat fences nobody off.

        Raises:
            SessionNotFound: there is none of this student. PermissionDenied: it is another owner's.
            StaleEpoch: the repeat of a call after which the session was resumed once more.
            DeadlineExceeded: what works on it is not over by the deadline (of `time.monotonic()`).
        """
        with self._lock:
            session = self._find(session_id, owner)
        if session.student != student:
            raise SessionNotFound(f"the session to resume is not one of student {student!r}")
        with self.working(session), _held_at_rest(session, deadline), self._lock:
            self._find(session_id, owner)  # it may have ended meanwhile
            session.rise(call_id)
        return session

    def get(self, ref: SessionRef, owner: str = "", call_id: str = "") -> Session:
        """The live session of this reference, if it is this owner's; its lease renewed.

        `call_id` is that of an Import, whose repeat comes under the epoch before.

        Raises:
            SessionNotFound: no such session; LeaseExpired if it ended for want of calls.
            PermissionDenied: it is another's. StaleEpoch: the session was resumed by another client since.
        """
        with self._lock:
            session = self._find(ref.session_id, owner)
            if not session.answers_to(ref.epoch, call_id):
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
            session.roll.call_off(SessionNotFound("the session ended while this Step waited for other ranks"))
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
        limit = self._limit()
        if len(self._live) >= limit:
            raise Overloaded(f"{limit} sessions are open, which is the limit; try again later", self.lease_s)
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


@contextmanager
def _held_at_rest(session: Session, deadline: float | None) -> Iterator[None]:
    limit_s = _REST_S if deadline is None else max(0.0, deadline - time.monotonic())
    if not session.at_rest.acquire(timeout=limit_s):
        raise DeadlineExceeded("a call of the session's older client was still running at the deadline; try again")
    try:
        yield
    finally:
        session.at_rest.release()


def account_of(owner: str, student: str) -> str:
    """A student's name among its owner's own; the bare name where nobody is asked who they are."""
    return f"{owner}/{student}" if owner else student


def new_session_id() -> str:
    """An id nobody can guess."""
    return secrets.token_hex(16)
