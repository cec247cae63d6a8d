"""One teacher of a run: what it reads, what it cost, its session, which may be lost; knows no other teacher."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, fields
from typing import TypeVar

import torch

from student_client.teachers.remote import Teacher
from student_client.teachers.session import Handle
from task_data import Batch, Split, teacher_view
from teaching_protocol.errors import IncompatibleTeacher, ServiceError, SessionNotFound, StudentNameTaken, TeachingError
from teaching_protocol.verbs import DescribeReply

__all__ = ["NOT_YET", "STUDENT_TOKENS", "UNREACHABLE", "Account", "Member", "read_by_teachers", "reads"]

Tensors = Mapping[str, torch.Tensor]
T = TypeVar("T")

UNREACHABLE = (ServiceError, SessionNotFound)
"""What a teacher that is down, out of reach or restarted raises; anything else is the caller's fault."""

NOT_YET = (*UNREACHABLE, StudentNameTaken)
"""What opening a session again may raise for a while: an earlier one of this student may live until its lease ends."""

STUDENT_TOKENS = ("input_ids", "attention_mask")
"""The inputs of a teacher that reads the student's own tokens, in place of the text."""

_VIEWS = (("text",), ("image",), ("user", "item"), STUDENT_TOKENS)
"""The inputs a teacher may read, each a whole view of an example; the first that fits is sent."""
_LEAVE_S = 2.0
_DESCRIBE_S = 10.0


@dataclass(frozen=True)
class Account:
    """What teachers cost: their compute seconds, rows they were asked about, rows they were spared, bytes on the wire."""

    seconds: float = 0.0
    rows: int = 0
    rows_saved: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0

    def __add__(self, other: Account) -> Account:
        return Account(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(self)))

    def __sub__(self, other: Account) -> Account:
        return Account(*(getattr(self, each.name) - getattr(other, each.name) for each in fields(self)))


class Member:
    """One teacher and the part of a batch it reads.

    Args:
        teacher: its session.
        ports: names of its own inputs among the batch's `teacher` tensors; all of those before its card is known.
        place: its number among the run's teachers; 0 is the foundation.
        name: for messages and metrics.

    Attributes:
        card: what it says of itself; an empty card before it was met.
        state: the last state known of its session, with which it is opened again.
        rows_saved: rows that a method did not send; methods count here.
        lost: why it is missing; None while it can be asked.
        reopen: has its lost session opened again just where it was, so that a call is made again and nothing else; None
            where who calls winds both sides back.
    """

    def __init__(self, teacher: Teacher, ports: tuple[str, ...], place: int = 0, name: str = "teacher") -> None:
        self.teacher, self.ports, self.place, self.name = teacher, ports, place, name
        self.card = DescribeReply()
        self.state = b""
        self.rows_saved = 0
        self.observe_wait_s = 0.0
        self.lost: Exception | None = None
        self.reopen: Callable[[TeachingError], None] | None = None
        self._attempt: Future[None] | None = None
        self._next_attempt = 0.0

    @property
    def is_missing(self) -> bool:
        """Whether it cannot be asked."""
        return self.lost is not None

    @property
    def account(self) -> Account:
        """What it has cost."""
        seconds, rows, sent, received = self.teacher.costs
        return Account(seconds, rows, self.rows_saved, sent, received)

    def own(self, batch: Batch) -> dict[str, torch.Tensor]:
        """The teacher's own view of a batch."""
        return {name: batch.teacher[name] for name in self.ports}

    def fetch(self, batch: Batch, ports: Sequence[str]) -> dict[str, torch.Tensor]:
        """Asks what the teacher knows about a batch; may run in another thread."""
        return self.teacher.observe(self.own(batch), ports)

    def observe(self, batch: Batch, ports: Sequence[str]) -> dict[str, torch.Tensor]:
        """What the teacher knows about a batch: what was fetched ahead, and the rest now; on the labels' device."""
        known = batch.known.get(self.place, {})
        missing = [port for port in ports if port not in known]
        began = time.monotonic()
        found = self._persistently(lambda: self.fetch(batch, missing)) if missing else {}
        self.observe_wait_s += time.monotonic() - began
        device = batch.labels.device
        return {port: (known[port] if port in known else found[port]).to(device) for port in ports}

    def _persistently(self, job: Callable[[], T]) -> T:
        """What a job gives; with `reopen` it is done again after every loss."""
        while True:
            try:
                return job()
            except UNREACHABLE as error:
                if self.reopen is None:
                    raise
                self.reopen(error)

    def join(self) -> None:
        """Opens the session, or again: the live one where there is one, else a new one from the last known state.

        What a live session had gathered since its last Step is let go: the step it belonged to is lost. A new one is opened at the
        first of the teacher's addresses that takes it.

        Raises:
            IncompatibleTeacher: the teacher reads nothing of this data set, or is another one than before.
            ServiceError: it cannot be reached at any.
        """
        if self._resumes():
            self.teacher.step(lr=0.0, grad_scale=0.0)
            return
        refused: list[str] = []
        while True:
            try:
                self._check_card()
                self.teacher.enroll(self.state)
                return
            except UNREACHABLE as error:
                if not self.teacher.move_on_untried():
                    for each in refused:
                        error.add_note(f"before that: {each}")
                    raise
                refused.append(str(error))

    def _resumes(self) -> bool:
        """Takes the live session over, if there is one."""
        live = self.teacher.session.session_id
        if not live:
            return False
        try:
            self.teacher.enroll(resume=live)
        except SessionNotFound:
            return False
        return True

    def _check_card(self) -> None:
        """Asks who serves there, and refuses another one than before."""
        card = self.teacher.describe(_DESCRIBE_S)
        if self.card.model_hash not in ("", card.model_hash):
            raise IncompatibleTeacher(
                f"{self.name!r}: {card.model_name} ({card.model_hash[:12]}) serves now where {self.card.model_name} "
                f"({self.card.model_hash[:12]}) did before; serve the same weights again, or start the run anew"
            )
        self.ports = reads(card, self.ports)
        self.card = card

    def go_back(self, state: bytes) -> None:
        """Opens the session again with an earlier state: the live one under its next epoch, else a new one.

        What is still under way of the epoch before is refused by the teacher from now on. After a failure the next attempt
        goes to the teacher's next address.

        Args:
            state: exported at that time; empty for a session that nothing was done in.

        Raises:
            IncompatibleTeacher: another teacher serves than before.
            ServiceError, StudentNameTaken: not yet.
        """
        self._settle()
        self.lost, self.state = None, state
        try:
            self.teacher.move_if_better()
            self._check_card()
            if not self._resumes():
                self.teacher.enroll(state)
            elif state:
                self.teacher.import_state(state)
        except NOT_YET:
            self.teacher.move_on()
            raise

    def adopt(self, handle: Handle, rank: int) -> None:
        """Takes part, as this rank, in the session that rank 0 has opened.

        Raises:
            IncompatibleTeacher: another teacher serves there than before.
            ServiceError: it cannot be reached.
        """
        self.lost = None
        self.teacher.find(handle)
        self._check_card()
        self.teacher.adopt(handle, rank)

    def miss(self, error: Exception) -> None:
        """Notes that it cannot be asked; from now on `has_come_back` looks for it."""
        self.lost = error
        self._attempt, self._next_attempt = None, 0.0

    def has_come_back(self, retry_s: float) -> bool:
        """Whether a missing teacher has been reached again, and joined; waits for nothing.

        The attempts run in a thread of their own, one every `retry_s` seconds at most.

        Raises:
            CallerError: it was reached and refuses.
        """
        if self._attempt is None:
            if time.monotonic() >= self._next_attempt:
                self._attempt = _in_background(self.join)
            return False
        if not self._attempt.done():
            return False
        error, self._attempt = self._attempt.exception(), None
        if error is None:
            self.lost = None
            return True
        if not isinstance(error, NOT_YET):
            raise error
        self.teacher.move_on()
        self._next_attempt = time.monotonic() + retry_s
        return False

    def leave(self) -> None:
        """Ends the session; harmless when repeated or when the teacher is gone."""
        self._settle()
        self.teacher.leave()

    def _settle(self) -> None:
        """Waits for an attempt that is under way, so that no session is opened behind our back."""
        if self._attempt is not None:
            wait([self._attempt], _LEAVE_S)
            self._attempt = None


def reads(card: DescribeReply, served: Sequence[str]) -> tuple[str, ...]:
    """The inputs a teacher takes among those a data set has.

    Raises:
        IncompatibleTeacher: there is no view that both have.
    """
    for view in _VIEWS:
        if all(name in card.input_ports and name in served for name in view):
            return view
    raise IncompatibleTeacher(
        f"the teacher {card.model_name} reads {', '.join(card.input_ports)}, but this data set speaks to it in "
        f"{', '.join(served)}; serve a teacher of that modality"
    )


def read_by_teachers(split: Split, ports: Sequence[str], view: Tensors) -> Tensors:
    """These input ports of teachers for the N examples of a split, some of them from the student's own `view`."""
    ours = {port: view[port] for port in ports if port in STUDENT_TOKENS}
    return {**teacher_view(split, [port for port in ports if port not in ours]), **ours}


def _in_background(job: Callable[[], None]) -> Future[None]:
    """Runs a job in a thread that the process does not wait for at its end."""
    future: Future[None] = Future()

    def run() -> None:
        try:
            job()
        except Exception as error:
            future.set_exception(error)
        else:
            future.set_result(None)

    threading.Thread(target=run, name="join", daemon=True).start()
    return future
