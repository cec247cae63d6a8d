"""Lost teachers brought forward to where they were, for loops that nobody winds back; knows no student and no method.

The trainer of this package winds both sides back to their newest cut. A loop of another library holds its own optimizer,
order of batches and random numbers, so there the student stays where it is: a lost session is opened again with the
state that was last taken, the calls made since are made again in their order, and the call that failed is repeated. A
frozen teacher's part of a call depends on its inputs alone, so the codec is what it was: to the bit in deterministic mode.
"""

from __future__ import annotations

from functools import partial

from student_client.teachers.members import Member
from student_client.teachers.recovery import Losses, Recovery
from student_client.teachers.sent import Sent
from student_client.teachers.teachers import Teachers
from teaching_protocol.errors import TeachingError

__all__ = ["Continuity"]


class Continuity:
    """Has the calls of teachers outlast losses.

    Args:
        teachers: enrolled.
        every: steps after which states are taken: the most that is told again.
        size_bytes: of all that is kept to be told again; beyond it, states are taken at once.

    Attributes:
        losses: what was lost so far.
    """

    def __init__(self, teachers: Teachers, every: int = 50, size_bytes: int = 2**28) -> None:
        self.losses = Losses()
        self._teachers, self._every, self._size_bytes = teachers, every, size_bytes
        self._recovery = Recovery(teachers, self.losses, lambda: False)
        self._sent: list[Sent] = []
        self._done = self._taken = 0

    def begin(self) -> None:
        """From now on a call of a lost teacher waits for it; what the sessions are now is the first state."""
        self._sent = (
            [member.teacher.note_sent() for member in self._teachers.members] if self._teachers.converse else []
        )
        for member in self._teachers.members:
            member.reopen = partial(self._come_back, member)
        self.take()

    def stepped(self) -> None:
        """A step of both sides is done."""
        self._done += 1
        if self._done - self._taken >= self._every or sum(sent.size_bytes for sent in self._sent) > self._size_bytes:
            self.take()

    def take(self) -> tuple[bytes, ...]:
        """The state of every session between two steps, from which it would be opened again."""
        states = self._teachers.export_states()
        self._forget()
        return states

    def put_back(self, states: tuple[bytes, ...]) -> None:
        """Has every session go on from states that `take` gave, of this run or of one before."""
        self._forget()
        self._teachers.import_states(states)
        self._forget()

    def _forget(self) -> None:
        self._taken = self._done
        for sent in self._sent:
            sent.clear()

    def _come_back(self, member: Member, error: TeachingError) -> None:
        def again() -> None:
            member.go_back(member.state)
            member.teacher.tell_again()

        self._recovery.persist(error, self._done, self._done, again)
