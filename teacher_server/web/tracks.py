"""One session from sample to sample: the totals that its rates are taken of, its curve, what is said of it; pure."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TypeVar

from teacher_server.metrics.usage import Failure, Taken
from teacher_server.web.readings import SessionReading
from teacher_server.web.snapshot import Fault, SessionStatus, shown

__all__ = ["WINDOW", "Track", "newest", "session_status"]

WINDOW = 5  # intervals that rates are taken over

T = TypeVar("T")


@dataclass
class Track:
    """One session: its newest reading, its totals at the last few samples, newest last, and its curve."""

    number: int
    newest: SessionReading
    taken: deque[tuple[float, Taken]] = field(default_factory=lambda: deque(maxlen=WINDOW + 1))
    curve: deque[float] = field(default_factory=deque)

    def rate(self, name: str) -> float:
        """What one of the totals grew by, a second."""
        (start, first), (end, last) = self.taken[0], self.taken[-1]
        grown: float = getattr(last, name) - getattr(first, name)
        return grown / (end - start) if end > start else 0.0


def session_status(track: Track, now: float, points: int) -> SessionStatus:
    """What is said of a session at a time, with the newest points of its curve."""
    reading = track.newest
    taken, error = reading.taken, reading.last_error
    return SessionStatus(
        number=track.number,
        student=shown(reading.student),
        identity=shown(reading.identity),
        task=shown(reading.task),
        epoch=reading.epoch,
        step=reading.step,
        steps_per_s=track.rate("steps"),
        device_share=min(1.0, track.rate("compute_s")),
        wait_share=track.rate("queue_s"),
        tokens_per_s=track.rate("tokens"),
        bytes_per_s=track.rate("received_bytes") + track.rate("sent_bytes"),
        compute_s=taken.compute_s,
        queue_s=taken.queue_s,
        state_bytes=reading.state_bytes,
        age_s=max(0.0, now - reading.opened),
        idle_s=max(0.0, now - reading.last_call),
        under_way=reading.under_way,
        refused=taken.refused,
        failed=taken.failed,
        last_error=None if error is None else _fault(error, now),
        history=newest(track.curve, points),
    )


def _fault(error: Failure, now: float) -> Fault:
    return Fault(kind=shown(error.kind), sentence=shown(error.sentence, 200), age_s=max(0.0, now - error.at))


def newest(curve: deque[T], points: int) -> list[T]:
    """The last so many."""
    return list(curve)[-points:] if points else []
