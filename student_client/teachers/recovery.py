"""A teacher that is lost, or sends its students elsewhere, is a pause: it is waited for, here or at another place; knows no student and no file."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from student_client.teachers.members import NOT_YET, UNREACHABLE
from student_client.teachers.teachers import Absence, Teachers
from teaching_protocol.errors import Draining, TeacherUnavailable, TeachingError

__all__ = ["LOST", "Losses", "Patience", "Recovery"]

LOST = UNREACHABLE
"""What a call raises when its teacher is lost: killed, restarted, cut off, draining, without memory, its lease over."""

_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.1, 2.0


@dataclass
class Losses:
    """How often teachers were lost and came back, how often sessions moved as planned, what that cost; over all of a run.

    Attributes:
        recoveries: times a lost teacher came back.
        replayed_steps: steps made again.
        paused_s: seconds waited, for moves too.
        moves: times a session was told to go, by a server that drains or as it belongs to another replica, and went on; no loss.
    """

    recoveries: int = 0
    replayed_steps: int = 0
    paused_s: float = 0.0
    moves: int = 0


class Patience:
    """Tries again, with jittered backoff, for so many seconds without progress.

    Args:
        absence: says for how long, and hears of it.
        is_over: whether somebody wants an end.
    """

    def __init__(self, absence: Absence, is_over: Callable[[], bool] = lambda: False) -> None:
        self._absence, self._is_over = absence, is_over
        self._until, self._attempts = 0.0, 0

    def begin(self) -> None:
        """There was progress: the seconds count from now."""
        self._until, self._attempts = time.monotonic() + self._absence.patience_s, 0

    def persist(self, job: Callable[[], None], error: TeachingError) -> bool:
        """Tries until a job is done; False if somebody wanted an end before.

        Args:
            job: harmless to repeat.
            error: why it has to be tried.

        Raises:
            TeachingError: `error` itself where there is no patience; TeacherUnavailable when it is used up; what is no loss
                at once.
        """
        if self._absence.patience_s <= 0:
            raise error
        while not self._is_over():
            if time.monotonic() >= self._until:
                raise TeacherUnavailable(
                    f"the teacher did not come back within {self._absence.patience_s:g} s ({_noted(error)}); start it again "
                    f"and go on from the last checkpoint with --resume, or raise {self._absence.setting}"
                ) from error
            self._wait()
            try:
                job()
            except NOT_YET as again:
                error = again
            else:
                return True
        return False

    def _wait(self) -> None:
        """Nearly nothing at first, spread so that students of one teacher do not all come at once."""
        most = min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2.0 ** min(self._attempts, 16))
        spread = 0.0 if self._attempts == 0 else 0.5
        self._attempts += 1
        time.sleep(most * (spread + (1 - spread) * random.random()))


class Recovery:
    """Brings teachers that were lost back to where both sides agreed.

    Args:
        teachers: of the run.
        losses: are counted here.
        is_over: whether somebody wants the run to end.
    """

    def __init__(self, teachers: Teachers, losses: Losses, is_over: Callable[[], bool]) -> None:
        self.losses = losses
        self._teachers, self._absence = teachers, teachers.absence
        self._patience = Patience(teachers.absence, is_over)
        self._lost_at = -1

    def come_back(self, error: TeachingError, step: int, target: int, states: Sequence[bytes]) -> bool:
        """Waits until every teacher has its session again, with an earlier state; as `persist`.

        Args:
            error: how the loss was noticed.
            step: steps done then.
            target: the step that both sides go back to.
            states: of the sessions at that step.
        """
        return self.persist(error, step, target, lambda: self._teachers.go_back(states))

    def persist(self, error: TeachingError, step: int, target: int, job: Callable[[], None]) -> bool:
        """Waits until a job brings back what was lost; False if somebody wanted an end before.

        The patience is for one place of the run: it begins anew only when the run got further than at the loss before.

        Args:
            error: how the loss was noticed.
            step: steps done then.
            target: the step that both sides go on from.
            job: harmless to repeat.

        Raises:
            TeachingError: as `Patience.persist`; IncompatibleTeacher if another teacher serves now.
        """
        began, before, is_planned = time.monotonic(), self._teachers.whereabouts, isinstance(error, Draining)
        if step > self._lost_at:
            self._lost_at = step
            self._patience.begin()
        if self._absence.patience_s > 0:
            what = "the student moves" if is_planned else "the teacher is lost"
            limit = f"waiting up to {self._absence.patience_s:g} s for {'a place' if is_planned else 'it'}"
            self._absence.say(f"{what} after step {step} ({_noted(error)}); {limit}")
        came = self._reached(error, job)
        paused_s = time.monotonic() - began
        self.losses.paused_s += paused_s
        if came:
            self.losses.moves += is_planned
            self.losses.recoveries += not is_planned
            self.losses.replayed_steps += step - target
            where = _moved(before, self._teachers.whereabouts) if is_planned else "the teacher is there again"
            self._absence.say(f"{where} after {paused_s:.1f} s; {_cost(step, target, is_planned)}")
        return came

    def _reached(self, error: TeachingError, job: Callable[[], None]) -> bool:
        """Rank 0 persists, the others take part in what it has reached; one that cannot has rank 0 persist again."""
        while self._persisted(error, job):
            try:
                self._teachers.share()
            except LOST as again:
                error = again
            else:
                return True
        return False

    def _persisted(self, error: TeachingError, job: Callable[[], None]) -> bool:
        return self._teachers.ranks.first(lambda: self._patience.persist(job, error))


def _moved(before: Sequence[str], after: Sequence[str]) -> str:
    """From where to where sessions went; one whose server was restarted has gone nowhere."""
    ways = [f"from {one} to {other}" for one, other in zip(before, after, strict=True) if one != other]
    return f"the student has moved {', '.join(ways)}" if ways else "the teacher serves again"


def _cost(step: int, target: int, is_planned: bool) -> str:
    if is_planned and step == target:
        return "nothing is lost, no step is made again"
    return f"both sides go on from step {target}, {step - target} steps are made again"


def _noted(error: TeachingError) -> str:
    return "; ".join([str(error), *getattr(error, "__notes__", [])])
