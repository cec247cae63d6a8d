"""The last few minutes of readings as rates, shares and curves; pure: no clock, no lock, no teacher.

One thread adds and asks. What is kept is bounded: so many samples of the server, and of each live session its curve and
the few readings that rates are taken over.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from teacher_server.metrics.usage import Taken
from teacher_server.web.readings import Reading, Totals
from teacher_server.web.snapshot import (
    Batches,
    Cache,
    Load,
    Memory,
    Refusal,
    Status,
    TeacherCard,
)
from teacher_server.web.tracks import WINDOW, Track, newest, session_status

__all__ = ["CURVES", "Facts", "History"]

CURVES = (
    "engine_share",
    "steps_per_s",
    "tokens_per_s",
    "queue_s",
    "batch_rows",
    "batch_students",
    "graph_bytes",
    "knowledge_bytes",
    "memory_bytes",
    "refused_per_s",
    "sessions",
)


@dataclass(frozen=True)
class Facts:
    """What does not change while the server runs; `started` in seconds since 1970."""

    started: float
    teacher: TeacherCard


class History:
    """Takes readings in and says the status.

    Args:
        facts: of the server.
        interval_s: how far apart readings are meant to be.
        kept: how many samples are kept.
    """

    def __init__(self, facts: Facts, interval_s: float = 2.0, kept: int = 150) -> None:
        self.interval_s = interval_s
        self.kept = kept
        self.sample = 0
        self._facts = facts
        self._readings: deque[Reading] = deque(maxlen=kept)
        self._curves: dict[str, deque[float | None]] = {name: deque(maxlen=kept) for name in CURVES}
        self._tracks: dict[str, Track] = {}
        self._numbered = 0

    def add(self, reading: Reading) -> None:
        """Takes one more reading in; those that are too old go."""
        self.sample += 1
        self._readings.append(reading)
        self._follow(reading)
        growth = self._growth()
        values: dict[str, float | None] = {
            "engine_share": growth.share("busy_s"),
            "steps_per_s": growth.rate("steps"),
            "tokens_per_s": growth.rate("tokens"),
            "queue_s": growth.mean("queue_s", "calls"),
            "batch_rows": growth.mean("rows", "batches"),
            "batch_students": growth.mean("students", "batches"),
            "graph_bytes": reading.levels.graph_bytes,
            "knowledge_bytes": reading.levels.knowledge_bytes,
            "memory_bytes": reading.levels.memory_bytes,
            "refused_per_s": growth.refused_per_s,
            "sessions": len(reading.sessions),
        }
        for name, curve in self._curves.items():
            curve.append(_short(values[name]))

    def status(self, after: int = 0) -> Status:
        """The newest sample, and the curves after sample `after`; all of them where that is not one that is kept.

        There must be a reading.
        """
        reading, growth = self._readings[-1], self._growth()
        first_kept = self.sample - len(self._readings)
        known = after if first_kept <= after <= self.sample else 0
        points = self.sample - known if known else self.kept
        return Status(
            now=reading.now,
            started=self._facts.started,
            state=reading.state,
            sample=self.sample,
            after=known,
            interval_s=self.interval_s,
            kept=self.kept,
            window_s=self.interval_s * WINDOW,
            teacher=self._facts.teacher,
            load=self._load(reading, growth),
            batches=self._batches(growth),
            **self._caches(reading),
            memory=self._memory(reading),
            refusals=self._refusals(reading),
            sessions=[session_status(self._tracks[each.key], reading.now, points) for each in reading.sessions],
            history={name: newest(curve, points) for name, curve in self._curves.items()},
        )

    @property
    def _is_full(self) -> bool:
        """Whether what happened before the oldest sample is past; until then the history is all there was."""
        return len(self._readings) == self.kept

    def _follow(self, reading: Reading) -> None:
        """Notes each live session's reading, and forgets those that have ended."""
        tracks = {}
        for each in reading.sessions:
            track = self._tracks.get(each.key)
            if track is None:
                self._numbered += 1
                track = Track(self._numbered, each, curve=deque(maxlen=self.kept))
                track.taken.append((reading.at - (reading.now - each.opened), Taken()))
            track.newest = each
            track.taken.append((reading.at, each.taken))
            track.curve.append(_short(track.rate("steps")) or 0.0)
            tracks[each.key] = track
        self._tracks = tracks

    def _growth(self) -> _Growth:
        return _Growth(self._readings[max(0, len(self._readings) - 1 - WINDOW)], self._readings[-1])

    def _load(self, reading: Reading, growth: _Growth) -> Load:
        return Load(
            engine_share=growth.share("busy_s"),
            steps_per_s=growth.rate("steps"),
            tokens_per_s=growth.rate("tokens"),
            calls_per_s=growth.rate("calls"),
            queue_s=growth.mean("queue_s", "calls"),
            received_bytes_per_s=growth.rate("received_bytes"),
            sent_bytes_per_s=growth.rate("sent_bytes"),
            in_flight=int(reading.levels.in_flight),
            permits=reading.limits.permits,
            sessions=len(reading.sessions),
            max_sessions=reading.limits.sessions,
        )

    def _batches(self, growth: _Growth) -> Batches:
        return Batches(
            per_s=growth.rate("batches"),
            rows=growth.mean("rows", "batches"),
            tokens=growth.mean("batch_tokens", "batches"),
            max_tokens=growth.last.limits.batch_tokens,
            students=growth.mean("students", "batches"),
        )

    def _caches(self, reading: Reading) -> dict[str, Cache]:
        now, limits = reading.totals, reading.limits
        first = self._readings[0].totals if self._is_full else Totals()
        found = {}
        for name, held, limit in (
            ("graphs", reading.levels.graph_bytes, limits.graph_bytes),
            ("knowledge", reading.levels.knowledge_bytes, limits.knowledge_bytes),
        ):
            stem = name.removesuffix("s")
            hits, misses = getattr(now, f"{stem}_hits"), getattr(now, f"{stem}_misses")
            new_hits, new_misses = hits - getattr(first, f"{stem}_hits"), misses - getattr(first, f"{stem}_misses")
            asked = new_hits + new_misses
            found[name] = Cache(
                bytes=int(held),
                limit_bytes=limit,
                hits=int(hits),
                misses=int(misses),
                hit_share=new_hits / asked if asked else None,
            )
        return found

    def _memory(self, reading: Reading) -> Memory:
        limits = reading.limits
        return Memory(
            kind=limits.memory_kind,
            bytes=int(reading.levels.memory_bytes),
            limit_bytes=limits.memory_bytes,
            state_bytes=sum(each.state_bytes for each in reading.sessions),
            state_limit_bytes=limits.state_bytes,
        )

    def _refusals(self, reading: Reading) -> list[Refusal]:
        before: Mapping[str, float] = self._readings[0].refused if self._is_full else {}
        found = [
            Refusal(reason=reason, recent=int(total - before.get(reason, 0.0)), total=int(total))
            for reason, total in reading.refused.items()
            if total
        ]
        return sorted(found, key=lambda each: (-each.recent, -each.total, each.reason))


@dataclass(frozen=True)
class _Growth:
    """Two readings: what happened between them."""

    first: Reading
    last: Reading

    @property
    def seconds(self) -> float:
        return self.last.at - self.first.at

    @property
    def refused_per_s(self) -> float:
        grown = sum(self.last.refused.values()) - sum(self.first.refused.values())
        return grown / self.seconds if self.seconds > 0 else 0.0

    def of(self, name: str) -> float:
        grown: float = getattr(self.last.totals, name) - getattr(self.first.totals, name)
        return grown

    def rate(self, name: str) -> float:
        return self.of(name) / self.seconds if self.seconds > 0 else 0.0

    def share(self, name: str) -> float:
        """Seconds of each second; a batch counts when it ends, which makes no more of it than there is."""
        return min(1.0, self.rate(name))

    def mean(self, name: str, count: str) -> float | None:
        counted = self.of(count)
        return self.of(name) / counted if counted else None


def _short(value: float | None) -> float | None:
    """Four digits are enough for a curve, and keep it small."""
    return None if value is None else float(f"{value:.4g}")
