"""The teachers of a run as one, the foundation first: asked at once, stepped and kept together; knows no method."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

import torch

from student_client.ranks import Ranks
from student_client.teachers.absence import Absence, wait_for
from student_client.teachers.exchange import Exchange, settled
from student_client.teachers.members import UNREACHABLE, Account, Member, reads
from student_client.teachers.pausing import Overlap, Pausing, finished
from teaching_protocol.errors import Draining, StateMismatch, TeacherUnavailable, TeachingError
from teaching_protocol.threads import side_threads
from teaching_protocol.tracing import Tracing
from teaching_protocol.verbs import DescribeReply

__all__ = ["Absence", "Account", "Member", "Teachers", "reads"]

Tensors = Mapping[str, torch.Tensor]
T = TypeVar("T")

_CALLS_AHEAD = 4  # at each teacher: a Backward, the Forwards of three microbatches


class Teachers:
    """All teachers of a run, or none.

    Args:
        members: the foundation first.
        converse: whether any method trains a codec at them, so that their steps and states matter.
        absence: what is done when one cannot be reached.
        ranks: the processes that share the sessions; what opens, exports or puts back a session is rank 0's to call.
    """

    def __init__(
        self,
        members: Sequence[Member] = (),
        converse: bool = True,
        absence: Absence | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        self.members = tuple(members)
        self.ranks = ranks or Ranks()
        self.converse = converse
        self.absence = absence or Absence()
        self.winds_back = False
        """Whether who calls winds both sides back when one is lost: then the rule `wait` raises, as `fail` does."""
        self.ahead_wait_s = 0.0
        """Seconds waited for what was asked ahead."""
        self._pool = side_threads(len(members) - 1, "teachers") if len(members) > 1 else None
        self._waits_until: dict[int, float] = {}
        self._overlap: Overlap | None = None
        self._calls: ThreadPoolExecutor | None = None

    def __len__(self) -> int:
        return len(self.members)

    def __getitem__(self, place: int) -> Member:
        return self.members[place]

    @property
    def first(self) -> Member:
        """The foundation teacher."""
        assert self.members, "a run connects a teacher for methods that need one"
        return self.members[0]

    @property
    def cards(self) -> tuple[DescribeReply, ...]:
        """What each says of itself; an empty card for one that was never met."""
        return tuple(member.card for member in self.members)

    @property
    def whereabouts(self) -> list[str]:
        """Where each session is, for sentences."""
        return [member.teacher.place for member in self.members]

    @property
    def wait_s(self) -> float:
        """Seconds this side has waited for them, each by itself: where they are asked at once, waits overlap."""
        return self.ahead_wait_s + sum(member.teacher.wait_s + member.observe_wait_s for member in self.members)

    @property
    def account(self) -> Account:
        """What all of them have cost."""
        return sum((member.account for member in self.members), Account())

    def enroll(self) -> None:
        """Opens the session of every teacher.

        Raises:
            TeachingError: one refuses, or cannot be reached and the rule allows it not.
        """
        self._each(lambda member: None if member.teacher.session.session_id else member.join())

    def share(self) -> None:
        """After rank 0 has opened the sessions anew: the other ranks take part in them. All ranks call it.

        Raises:
            TeachingError: a rank cannot reach a teacher.
        """
        if self.ranks.count == 1:
            return
        handles = self.ranks.first(lambda: [member.teacher.handle for member in self.members])
        with self.ranks.together():
            for member, handle in zip(self.members, handles, strict=True):
                if not self.ranks.is_first:
                    member.adopt(handle, self.ranks.rank)

    def trace(self, tracing: Tracing) -> None:
        """Has calls make spans from now on."""
        for member in self.members:
            member.teacher.trace(tracing)

    def leave(self) -> None:
        """Ends every session; harmless when repeated."""
        for member in self.members:
            member.leave()
        if self._calls is not None:
            self._calls.shutdown(wait=False)  # what is still under way after an error ends with its session
            self._calls = None

    def present(self) -> list[Member]:
        """The teachers that can be asked now; one that was missing and has been reached again joins here.

        Raises:
            TeacherUnavailable: all are missing.
        """
        for member in self.members:
            if member.is_missing and member.has_come_back(self.absence.retry_s):
                codec = "the last state known of its codec" if member.state else "a fresh codec"
                self.absence.say(f"the teacher {member.name!r} is there again and goes on with {codec}")
        self._check_anybody()
        return [member for member in self.members if not member.is_missing]

    def ask(self, questions: Mapping[int, tuple[Tensors, Sequence[str]]]) -> dict[int, dict[str, torch.Tensor]]:
        """Asks several teachers at once: (input ports, names of output ports) by place to output ports by place.

        As `pausing_ask`, without a pause.
        """
        return finished(self.pausing_ask(questions))

    def pausing_ask(
        self, questions: Mapping[int, tuple[Tensors, Sequence[str]]]
    ) -> Pausing[dict[int, dict[str, torch.Tensor]]]:
        """Asks several teachers at once; pauses while they answer, with the questions under way inside `overlapping`.

        A teacher that cannot be reached, here or in the backward of what it has answered, is treated as `absence` says.
        One that `skip` goes on without is missing in what comes back; in backward its inputs get gradients of zero.

        Raises:
            TeachingError: one refuses, or cannot be reached and the rule allows it not.
        """
        places = list(questions)
        asked = [self.members[place].teacher.question(*questions[place]) for place in places]
        under_way = Exchange(
            asked, lambda at, error: self._goes_again(self.members[places[at]], error), self._pool, self._overlap
        )
        yield
        self._waits_until.clear()
        found = under_way.result()
        return {place: answer for place, answer in zip(places, found, strict=True) if answer is not None}

    def pausing_ask_first(self, inputs: Tensors, outputs: Sequence[str]) -> Pausing[dict[str, torch.Tensor]]:
        """Asks the foundation teacher for output ports; pauses as `pausing_ask`, and no absence is allowed.

        Raises:
            TeachingError: it refuses, or cannot be reached.
        """
        goes_again = None if self.first.reopen is None else lambda _, error: self._goes_again(self.first, error)
        under_way = Exchange([self.first.teacher.question(inputs, outputs)], goes_again, overlap=self._overlap)
        yield
        found = under_way.result()[0]
        assert found is not None, "a call that failed raises"
        return found

    @contextmanager
    def overlapping(self, meanwhile: Callable[[], None]) -> Iterator[None]:
        """While entered, the calls of Forward and Backward are made in threads, and the student's own work goes on.

        Args:
            meanwhile: is done whenever a Backward is under way. It may ask, and must not go backward.
        """
        self._calls = self._calls or side_threads(_CALLS_AHEAD * len(self), "calls")
        self._overlap = Overlap(self._calls, meanwhile)
        try:
            yield
        finally:
            self._overlap = None

    def step(self, lr: float, grad_scale: float = 1.0, max_grad_norm: float = 0.0, rows: int = 0) -> dict[str, float]:
        """Steps every teacher-side codec, this rank's gradients weighed by its `rows`; gives their gradient norms by name, and with `skip` how many are missing."""
        if not self.converse:
            return {}
        norms = self._each(lambda member: member.teacher.step(lr, grad_scale, max_grad_norm, rows))
        found = {
            "teacher_grad_norm" if place == 0 else f"teacher_grad_norm.{place}": norm for place, norm in norms.items()
        }
        if self.absence.rule == "skip":
            found["teachers_missing"] = float(sum(member.is_missing for member in self.members))
        return found

    def export_states(self) -> tuple[bytes, ...]:
        """The state of every session, in the order of the members; empty where no codec is trained.

        That of a missing teacher is the last one known, empty where none ever was.
        """
        if not self.converse:
            return ()
        for place, state in self._each(lambda member: member.teacher.export_state()).items():
            self.members[place].state = state
        return tuple(member.state for member in self.members)

    def import_states(self, states: Sequence[bytes]) -> None:
        """Puts back what `export_states` gave; a missing teacher gets its state when it joins.

        Raises:
            StateMismatch: states of another number of teachers, or of other sessions.
        """
        if not self.converse:
            return
        if len(states) != len(self.members):
            raise StateMismatch(
                f"received the states of {len(states)} teachers, expected {len(self.members)}; "
                "resume with the teachers the run was started with"
            )
        for member, state in zip(self.members, states, strict=True):
            member.state = state
        self._each(lambda member: member.teacher.import_state(member.state) if member.state else 0)

    def go_back(self, states: Sequence[bytes]) -> None:
        """Opens every session again with the states that `export_states` gave, and fences off what came after.

        Raises:
            TeachingError: one refuses, or cannot be reached yet and the rule allows it not.
        """
        known = states if self.converse and states else [b""] * len(self.members)
        for member in self.members:
            member.lost = None
        self._each(lambda member: member.go_back(known[member.place]))

    def look_for_places(self) -> None:
        """Asks whether any session belongs to another replica by now, to be called when both sides agree.

        Raises:
            Draining: one does; `go_back` takes it there.
        """
        for member in self.members:
            if not member.is_missing and member.teacher.has_better_place():
                raise Draining(
                    f"the session with {member.name!r} belongs to another replica, which serves by now; it moves"
                )

    def hand_off(self, step: int) -> tuple[bytes, ...] | None:
        """The state of every session while its server drains, ended there; None where it is not the state after `step`."""
        there = [member.teacher for member in self.members if not member.is_missing]
        if self.converse and any(teacher.has_gathered or teacher.steps != step for teacher in there):
            return None
        states = self.export_states()
        for teacher in there:
            teacher.end()
        return states

    def check_weights(self, before: Sequence[str]) -> None:
        """Compares with the `hashes` of an earlier time; one that was never met is compared when it joins.

        Raises:
            StateMismatch: a teacher of other weights serves now.
        """
        for member, written in zip(self.members, before, strict=False):
            if member.card.model_hash and written not in ("", member.card.model_hash):
                raise StateMismatch(
                    f"{member.name!r}: the run was started with a teacher of weights {written[:12]}, and {member.card.model_name} "
                    f"({member.card.model_hash[:12]}) serves now; serve the same weights again, or start the run anew"
                )

    @property
    def hashes(self) -> list[str]:
        """What each says of its weights; empty for one that was never met."""
        return [card.model_hash for card in self.cards]

    def _each(self, action: Callable[[Member], T]) -> dict[int, T]:
        """What an action gives for each teacher that is there, all at once, by place."""
        self._waits_until.clear()
        there = [member for member in self.members if not member.is_missing]
        jobs = [partial(action, member) for member in there]
        found = settled(jobs, lambda at, error: self._goes_again(there[at], error), self._pool)
        return {member.place: each for member, each in zip(there, found, strict=True) if not member.is_missing}  # type: ignore[misc]

    def _goes_again(self, member: Member, error: TeachingError) -> bool:
        """Whether a call that failed is made again; raises what the rule does not allow."""
        rule = self.absence.rule
        if member.reopen is not None and rule != "skip" and isinstance(error, UNREACHABLE):
            member.reopen(error)
            return True
        if rule == "fail" or (rule == "wait" and self.winds_back) or not isinstance(error, UNREACHABLE):
            if len(self) > 1:
                error.add_note(f"this was the teacher {member.name!r}")
            raise error
        if rule == "wait":
            until = self._waits_until.setdefault(member.place, time.monotonic() + self.absence.wait_s)
            wait_for(member, error, self.absence, until)
            return True
        if not member.is_missing:
            member.miss(error)
            self.absence.say(f"warning: the teacher {member.name!r} is missing ({error}); the run goes on without it")
        self._check_anybody()
        return False

    def _check_anybody(self) -> None:
        lost = [member.lost for member in self.members if member.lost is not None]
        if lost and len(lost) == len(self):
            raise TeacherUnavailable(
                f"none of the {len(self)} teachers can be reached, expected one at least; start them again and go on from "
                f"the last checkpoint, or let method.committee.on_missing be wait ({lost[-1]})"
            ) from lost[-1]
