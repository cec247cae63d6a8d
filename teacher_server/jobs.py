"""The units of work: a job is one call with its own reply, a batch is jobs run together.

Plain values; they know neither who forms batches nor who runs them.
"""

from __future__ import annotations

import time
from collections.abc import Hashable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from teacher_server.sessions.replies import fingerprint
from teacher_server.sessions.sessions import Session
from teaching_protocol.verbs import BackwardRequest, Call, ForwardRequest, ImportRequest

__all__ = ["Batch", "Job", "Timing"]


@dataclass
class Timing:
    """Seconds a job waited and ran, filled in by the scheduler and the engine."""

    queue_s: float = 0.0
    compute_s: float = 0.0

    @property
    def seconds(self) -> dict[str, float]:
        """The fields of a reply that tell them."""
        return {"queue_s": self.queue_s, "compute_s": self.compute_s}


@dataclass(eq=False)
class Job:
    """One call that needs the engine; carries its own reply (`future`).

    Jobs with equal buckets may share a batch; one without a bucket runs alone. `tokens` is its padded area, rows times
    the tokens of the longest; those of a Backward are its Forward's. `batch` numbers the batch it ran in, from 1. `run_again`: a
    Backward for which its Forward was run once more.
    """

    method: str
    session: Session | None
    request: Any
    call: Call
    rows: int = 0
    tokens: int = 0
    born: float = field(default_factory=time.monotonic)
    future: Future[Any] = field(default_factory=Future)
    timing: Timing = field(default_factory=Timing)
    bucket: Hashable | None = None
    batch: int = 0
    run_again: bool = False
    _mark: int | None = None

    @property
    def has_effect(self) -> bool:
        """Whether a repeat must get the first reply; Step sees to that itself, the others may be repeated."""
        if isinstance(self.request, ImportRequest):
            return bool(self.request.call_id)
        return isinstance(self.request, BackwardRequest) or getattr(self.request, "backward_follows", False)

    @property
    def mark(self) -> int:
        """The request's checksum, found when it is first asked for; two threads that ask at once find the same."""
        if self._mark is None:
            self._mark = fingerprint(self.request)
        return self._mark

    def note_mark(self) -> None:
        """Finds the checksum now, so that whoever asks for it later does not have to."""
        _ = self.mark

    @property
    def lane(self) -> str:
        """Jobs of one lane run strictly in order: a session's, or the job's own without one."""
        return self.session.id if self.session is not None else f"job-{id(self)}"

    @property
    def frees_memory(self) -> bool:
        """Whether running it lets go of memory, so that it goes before a new Forward."""
        return not isinstance(self.request, ForwardRequest)

    @property
    def begins(self) -> bool:
        """Whether it begins something new, which a draining server refuses: a begun step goes on."""
        if isinstance(self.request, ForwardRequest):
            return self.session is None or not self.session.is_mid_step
        return isinstance(self.request, ImportRequest)

    def is_dead(self, now: float) -> bool:
        """Whether nobody waits for the reply any more."""
        return self.call.cancelled.is_set() or (self.call.deadline is not None and now > self.call.deadline)


@dataclass(frozen=True)
class Batch:
    """Jobs that run together, on so many of the engine's cores."""

    jobs: tuple[Job, ...]
    cores: int = 1

    @property
    def rows(self) -> int:
        """Rows of all its jobs."""
        return sum(job.rows for job in self.jobs)

    @property
    def tokens(self) -> int:
        """Tokens of all its jobs."""
        return sum(job.tokens for job in self.jobs)
