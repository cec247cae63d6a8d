"""Students whose calls fail again and again: first their jobs run alone, then they are refused for a time; no clock.

A job that fails in the engine costs a shared batch a second run. Each failure is a strike, each success takes a part of
one back; strikes belong to the student's name, so that a new session does not wipe them away.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from teacher_server.live import LiveSettings
from teacher_server.metrics.metrics import Metrics
from teaching_protocol.errors import InternalError, InvalidTensor, NonFiniteError, Quarantined

__all__ = ["Quarantine"]

_POISON = (InternalError, InvalidTensor, NonFiniteError)
_FORGIVEN = 0.25
_LONGEST_S = 600.0
_NAMES = 4096


@dataclass
class _Record:
    strikes: float = 0.0
    times: int = 0
    until: float = 0.0
    reason: str = ""


class Quarantine:
    """Strikes by student name, newest 4096 names; its caller holds the lock."""

    def __init__(self, live: LiveSettings, metrics: Metrics) -> None:
        self._live = live
        self._metrics = metrics
        self._records: OrderedDict[str, _Record] = OrderedDict()

    def __len__(self) -> int:
        return len(self._records)

    def judge(self, student: str, error: BaseException | None, now: float) -> None:
        """Takes in how a job that ran ended: with a reply (None), or an error."""
        if error is None:
            self._forgive(student)
        elif isinstance(error, _POISON):
            self._strike(student, error, now)

    def is_alone(self, student: str) -> bool:
        """Whether the student's jobs share no batch for now."""
        record = self._records.get(student)
        return record is not None and record.strikes >= self._live.now.alone_strikes

    def check(self, student: str, now: float) -> None:
        """Refuses a student that is out.

        Raises:
            Quarantined: with the reason and the seconds it lasts.
        """
        record = self._records.get(student)
        if record is not None and now < record.until:
            left_s = record.until - now
            raise Quarantined(
                f"too many calls of student {student!r} failed, the last with {record.reason}; it is refused for "
                f"{left_s:.1f} s more: repair what it sends, then go on",
                left_s,
            )

    def _strike(self, student: str, error: BaseException, now: float) -> None:
        record = self._records.setdefault(student, _Record())
        self._records.move_to_end(student)
        if len(self._records) > _NAMES:
            self._records.popitem(last=False)
        was_alone = self.is_alone(student)
        record.strikes += 1
        record.reason = f"{type(error).__name__}: {error}"
        self._metrics.strikes.inc()
        if record.strikes >= self._live.now.refused_strikes:
            record.until = now + min(_LONGEST_S, self._live.now.refused_s * 2**record.times)
            record.times = min(record.times + 1, 16)
            record.strikes = float(self._live.now.alone_strikes)  # on probation when it is back
            self._metrics.quarantines.labels("refused").inc()
        elif not was_alone and self.is_alone(student):
            self._metrics.quarantines.labels("alone").inc()

    def _forgive(self, student: str) -> None:
        record = self._records.get(student)
        if record is None:
            return
        record.strikes -= _FORGIVEN
        if record.strikes <= 0:
            del self._records[student]
