"""Where the Steps of one session's ranks meet: none is applied before all are in, none waits for ever; knows no model, no queue."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import suppress
from dataclasses import dataclass, field

from teacher_server.sessions.replies import fingerprint
from teaching_protocol.errors import (
    CallConflict,
    DeadlineExceeded,
    InvalidSetting,
    RankLost,
    StaleEpoch,
    StepOutOfOrder,
)
from teaching_protocol.verbs import StepReply, StepRequest

__all__ = ["Meeting", "RankedStep", "Roll"]


@dataclass(frozen=True)
class RankedStep(StepRequest):
    """The Steps of all ranks as one: `rows_by_rank` weighs each rank's gradients in the mean."""

    rows_by_rank: tuple[int, ...] = ()


@dataclass(eq=False)
class Meeting:
    """The Steps of one number under one epoch, by rank; open to others until `until` (of `time.monotonic()`)."""

    step: int
    epoch: int
    until: float
    asked: dict[int, StepRequest] = field(default_factory=dict)
    future: Future[StepReply] = field(default_factory=Future)

    def joint(self) -> RankedStep:
        """All of them as one."""
        first = self.asked[min(self.asked)]
        alike = {each.name: getattr(first, each.name) for each in dataclasses.fields(StepRequest)}
        rows = tuple(self.asked[rank].rows for rank in sorted(self.asked))
        return RankedStep(**alike | {"rank": 0, "rows": sum(rows)}, rows_by_rank=rows)


class Roll:
    """The roll call of one session's ranks. Several threads may be in it; each waits here for its own call."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: Meeting | None = None
        self._last: Meeting | None = None

    def meet(
        self,
        request: StepRequest,
        done: Callable[[], int],
        ranks: int,
        limits: tuple[float, float],
        apply: Callable[[RankedStep], StepReply],
    ) -> StepReply:
        """Notes one rank's Step and gives the reply of all; the thread of the last rank to come applies them.

        Args:
            request: of the rank.
            done: gives the session's last step.
            ranks: how many are waited for.
            limits: seconds in which all must be in, from the first; and the caller's deadline on `time.monotonic()`'s clock.
            apply: applies all Steps as one.

        Raises:
            RankLost: not all came in time; nobody's Step was applied, and all who waited are told.
            CallConflict: this rank has sent another Step of this number. InvalidSetting: the ranks ask for different steps.
            StepOutOfOrder: neither the next step nor the last one again.
            TeachingError: what `apply` raises, to all.
        """
        wait_s, deadline = limits
        with self._lock:
            meeting, is_last = self._arrived(request, done(), ranks, wait_s)
        if is_last:
            self._settle(meeting, apply)
        return self._waited(meeting, ranks, deadline)

    def call_off(self, error: Exception) -> None:
        """Tells whoever waits that nothing comes of it."""
        with self._lock:
            self._fail(self._open, error)

    def _arrived(self, request: StepRequest, done: int, ranks: int, wait_s: float) -> tuple[Meeting, bool]:
        """The meeting of this Step, and whether it was the last to come."""
        last, now = self._last, time.monotonic()
        if last is not None and request.step == last.step == done:
            _check_same(last.asked[request.rank], request)
            return last, False
        meeting = self._open
        if meeting is not None and meeting.epoch != request.session.epoch:
            self._fail(meeting, StaleEpoch("the session began a new epoch while this Step waited for other ranks"))
            meeting = None
        if meeting is not None and meeting.step != request.step:
            raise StepOutOfOrder(f"step {request.step} was sent while other ranks are at step {meeting.step}")
        if meeting is not None and now >= meeting.until and not _is_due(meeting, ranks):
            self._fail(meeting, _missing(meeting, ranks))
            meeting = None
        if meeting is None:
            if request.step not in (done, done + 1):
                raise StepOutOfOrder(f"step {request.step} was sent, but the session's next step is {done + 1}")
            meeting = self._open = Meeting(request.step, request.session.epoch, now + wait_s)
        if request.rank in meeting.asked:
            _check_same(meeting.asked[request.rank], request)
            return meeting, False
        _check_alike(meeting, request)
        meeting.asked[request.rank] = request
        return meeting, _is_due(meeting, ranks)

    def _settle(self, meeting: Meeting, apply: Callable[[RankedStep], StepReply]) -> None:
        try:
            reply = apply(meeting.joint())
        except Exception as error:
            with self._lock:
                self._fail(meeting, error)
            return
        with self._lock:
            self._last = meeting
            if self._open is meeting:
                self._open = None
            with suppress(InvalidStateError):  # called off meanwhile
                meeting.future.set_result(reply)

    def _waited(self, meeting: Meeting, ranks: int, deadline: float) -> StepReply:
        until = deadline if _is_due(meeting, ranks) else min(deadline, meeting.until)
        try:
            return meeting.future.result(max(0.0, until - time.monotonic()))
        except FutureTimeout:
            pass
        with self._lock:
            due = _is_due(meeting, ranks)
            if not due and not meeting.future.done():
                error = _missing(meeting, ranks)
                if time.monotonic() >= meeting.until:
                    self._fail(meeting, error)
                raise error
        try:
            return meeting.future.result(max(0.0, deadline - time.monotonic()))
        except FutureTimeout:
            raise DeadlineExceeded(
                "Step was not done by its deadline; the server is busy, or raise the deadline"
            ) from None

    def _fail(self, meeting: Meeting | None, error: Exception) -> None:
        """Ends a meeting without a step. The lock is held."""
        if meeting is None:
            return
        if self._open is meeting:
            self._open = None
        with suppress(InvalidStateError):
            meeting.future.set_exception(error)


def _is_due(meeting: Meeting, ranks: int) -> bool:
    return len(meeting.asked) == ranks


def _missing(meeting: Meeting, ranks: int) -> RankLost:
    absent = [str(rank) for rank in range(ranks) if rank not in meeting.asked]
    return RankLost(
        f"rank {', '.join(absent)} of {ranks} did not send its Step {meeting.step} in time; nothing was applied; look what became "
        "of it, and start all ranks again from the last checkpoint"
    )


def _check_same(before: StepRequest, request: StepRequest) -> None:
    if fingerprint(before) != fingerprint(request):
        raise CallConflict(f"rank {request.rank} has sent another Step {request.step} before")


def _check_alike(meeting: Meeting, request: StepRequest) -> None:
    for other in meeting.asked.values():
        for name in ("lr", "grad_scale", "max_grad_norm"):
            ours, theirs = getattr(request, name), getattr(other, name)
            if ours != theirs:
                raise InvalidSetting(
                    f"{name}: rank {request.rank} sent {ours} for step {request.step}, rank {other.rank} sent {theirs}; "
                    "all ranks of a student step alike"
                )
