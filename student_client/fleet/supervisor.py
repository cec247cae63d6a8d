"""Keeps the students of a fleet running until all have ended: starts, restarts, ends them; knows no method and no screen.

One thread, one loop: who has ended, who is due, what is to be shown. Each student is a process of its own, which ends
with this one, however this one ends.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock, Timeout

from student_client.fleet.child import NEVER
from student_client.fleet.plan import Planned, last_checkpoint, start_of
from student_client.fleet.records import Record, State
from student_client.fleet.restarts import Restarts
from student_client.fleet.seats import Seat
from student_client.fleet.starting import LOG, Launch, Running, launch, threads_of
from student_client.processes import last_line
from student_client.reporting.result import Result
from teaching_protocol.errors import ConfigError, TeachingError

__all__ = ["Supervisor"]

_MOMENT_S = 0.2


@dataclass
class _Student:
    """A student in the supervisor's hands."""

    planned: Planned
    record: Record
    due: float = 0.0
    saved_step: int = 0
    seat: Seat | None = None
    process: Running | None = None


@dataclass
class Supervisor:
    """Trains the students of a plan.

    Args:
        plan: the students.
        seats: as many as may train at once.
        restarts: what is done after a crash.
        grace_s: seconds that students have to finish their step when they are told to end.
        changed: called with a record whenever a student's state has changed.
        show: called with all records at every turn.
        say: called with a sentence for whoever watches.
        launch: starts a student's process, here or elsewhere.
    """

    plan: Sequence[Planned]
    seats: Sequence[Seat]
    restarts: Restarts
    grace_s: float
    changed: Callable[[Record], None] = lambda record: None
    show: Callable[[Sequence[Record]], None] = lambda records: None
    say: Callable[[str], None] = lambda sentence: None
    launch: Launch = launch
    signals: list[int] = field(default_factory=list)
    """Signals that asked to end, in their order: the first ends students cleanly, the second kills them."""

    def __post_init__(self) -> None:
        self._students = [_Student(each, _record(each)) for each in self.plan]
        self._wake = threading.Event()
        self._ends_at = float("inf")

    @property
    def records(self) -> list[Record]:
        """What became of each student so far."""
        return [each.record for each in self._students]

    def ask_to_end(self, number: int) -> None:
        """Has `run` end its students cleanly, asked again at once; safe in a signal handler."""
        self.signals.append(number)
        self._wake.set()

    def run(self) -> None:
        """Returns when every student has ended; none of their processes is left then, whatever happens."""
        try:
            while self._turn():
                self.show(self.records)
                self._wake.wait(_MOMENT_S)
                self._wake.clear()
        finally:
            for student in self._running():
                assert student.process is not None
                student.process.kill()
                student.process.wait()
        self.show(self.records)

    def _turn(self) -> bool:
        """Does what is to be done now; false when nothing will be."""
        for student in self._running():
            assert student.process is not None
            code = student.process.poll()
            if code is not None:
                self._ended(student, code)
        if self.signals:
            self._end()
        else:
            self._begin()
        return any(each.record.state in ("waiting", "running", "pausing") for each in self._students)

    def _running(self) -> list[_Student]:
        return [each for each in self._students if each.process is not None]

    def _begin(self) -> None:
        """Starts those who are due, as far as there are seats."""
        taken = {each.seat for each in self._running()}
        free, now = [seat for seat in self.seats if seat not in taken], time.monotonic()
        for student in self._students:
            if student.record.state in ("waiting", "pausing") and student.due <= now:
                if not free:
                    return
                if self._start(student, free[0]):
                    free.pop(0)

    def _start(self, student: _Student, seat: Seat) -> bool:
        """Starts a student on a seat; false if there is nothing to start."""
        planned, folder = student.planned, student.planned.folder
        try:
            how = start_of(planned)
            if how == "finished":
                self._finish(student)
                return False
            folder.mkdir(parents=True, exist_ok=True)
            if not _is_free(folder):
                self._crash(student, f"another process trains in {folder}")
                return False
            student.saved_step = last_checkpoint(folder)
            student.process = self.launch(planned, seat, how == "resume")
        except (TeachingError, OSError) as error:
            self._become(student, "failed", str(error))
            return False
        student.seat = seat
        record = student.record
        record.seat, record.cores, record.threads = seat.number, seat.cores, threads_of(planned, seat)
        record.pid, record.attempts = student.process.pid, record.attempts + 1
        self._become(student, "running")
        return True

    def _ended(self, student: _Student, code: int) -> None:
        """Takes in how a student's process ended."""
        assert student.process is not None
        if student.process.stdin is not None:
            student.process.stdin.close()
        student.process, student.seat, student.record.pid = None, None, None
        log = student.planned.folder / LOG
        if code == 0:
            self._finish(student)
        elif code == NEVER:
            self._become(student, "failed", last_line(log))
        elif self.signals:
            self._become(student, "interrupted")
        else:
            how = f"was ended by signal {-code}" if code < 0 else f"ended with code {code}: {last_line(log)}"
            self._crash(student, f"it {how}")

    def _finish(self, student: _Student) -> None:
        try:
            result = Result.read(student.planned.folder)
        except ConfigError as error:
            self._become(student, "failed", str(error))
            return
        student.record.metric, student.record.test = result.metric, result.test
        self._become(student, "finished")

    def _crash(self, student: _Student, reason: str) -> None:
        """Plans the next start of a student that crashed, or gives it up; a new checkpoint wipes earlier crashes away."""
        record, saved = student.record, last_checkpoint(student.planned.folder)
        record.crashes = 1 if saved > student.saved_step else record.crashes + 1
        pause_s = self.restarts.pause_s(record.crashes)
        if pause_s is None:
            self._become(student, "failed", f"{reason}; {record.crashes} times in a row without a new checkpoint")
            return
        student.due = time.monotonic() + pause_s
        self._become(student, "pausing", f"{reason}; starts again in {pause_s:.1f} s from step {saved}")

    def _end(self) -> None:
        """Asks all to finish their step, once; kills whoever is left after the grace, or when asked again."""
        if self._ends_at == float("inf"):
            self._ends_at = time.monotonic() + self.grace_s
            self.say("ends every student after its step and checkpoint; the same signal again kills them")
            for student in self._running():
                assert student.process is not None
                student.process.terminate()
            for student in self._students:
                if student.record.state in ("waiting", "pausing"):
                    self._become(student, "interrupted", student.record.error)
        if len(self.signals) > 1 or time.monotonic() > self._ends_at:
            for student in self._running():
                assert student.process is not None
                student.process.kill()

    def _become(self, student: _Student, state: State, error: str = "") -> None:
        student.record.state, student.record.error = state, error
        self.changed(student.record)


def _record(planned: Planned) -> Record:
    steps = (planned.config.training.max_steps or 0) if planned.config is not None else 0
    return Record(planned.name, str(planned.folder), steps=steps)


def _is_free(folder: Path) -> bool:
    """Whether no process trains in a folder: one of a fleet that was killed may still be writing its checkpoint."""
    try:
        with FileLock(folder / ".lock", timeout=0):
            return True
    except Timeout:
        return False
