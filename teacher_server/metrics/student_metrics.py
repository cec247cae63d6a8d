"""What each student has taken, as time series of its own while there is room; the others count together as `other`.

Read from the sessions' own usage when somebody scrapes: nothing is done for it while students are served.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field

from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from teacher_server.metrics.usage import Taken, Usage

__all__ = ["OTHER", "StudentTable"]

OTHER = "other"
_CHARACTERS = 64
_LABELS = ("identity", "student")

Key = tuple[str, str]  # identity, student


@dataclass
class _Row:
    """One student's series: what its ended sessions took, and the usage of those that live."""

    ended: Taken = field(default_factory=Taken)
    live: dict[int, Usage] = field(default_factory=dict)

    @property
    def taken(self) -> Taken:
        return sum((usage.taken for usage in self.live.values()), self.ended)


class StudentTable(Collector):
    """Counters by student, for at most so many names at once.

    A name stays after its last session has ended, so that the last of what it took is scraped, too, until a newcomer needs
    the place; the one that ended first makes room. Who finds no place counts as `other` for the whole of its session. So
    no counter falls while its series lives.

    Args:
        limit: names at once; 0 counts everybody as `other`, and then no name is told.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._rows: OrderedDict[Key, _Row] = OrderedDict({(OTHER, OTHER): _Row()})
        self._keys: dict[int, Key] = {}

    def __len__(self) -> int:
        return len(self._rows) - 1

    def open(self, identity: str, student: str, usage: Usage) -> None:
        """A session begins; harmless when repeated."""
        with self._lock:
            if id(usage) not in self._keys:
                key = self._place((_clean(identity), _clean(student)))
                self._keys[id(usage)] = key
                self._rows[key].live[id(usage)] = usage

    def close(self, usage: Usage) -> None:
        """A session has ended."""
        with self._lock:
            key = self._keys.pop(id(usage), None)
            if key is None:
                return
            row = self._rows[key]
            del row.live[id(usage)]
            row.ended += usage.taken
            self._rows.move_to_end(key)

    def collect(self) -> Iterator[CounterMetricFamily]:
        """The counters of every row."""
        with self._lock:
            totals = {key: row.taken for key, row in self._rows.items()}
        for name, text, labels, values in _FAMILIES:
            family = CounterMetricFamily(name, text, labels=[*_LABELS, *labels])
            for key, taken in totals.items():
                for label, attribute in values.items():
                    family.add_metric([*key, *([label] if labels else [])], getattr(taken, attribute))
            yield family

    def _place(self, key: Key) -> Key:
        if key in self._rows:
            return key
        if len(self) >= self._limit:
            left = next((each for each, row in self._rows.items() if not row.live and each != (OTHER, OTHER)), None)
            if left is None:
                return OTHER, OTHER
            del self._rows[left]
        self._rows[key] = _Row()
        return key


_FAMILIES: tuple[tuple[str, str, tuple[str, ...], dict[str, str]], ...] = (
    (
        "teacher_student_compute_seconds",
        "Engine seconds of a student's calls: its shares of batches.",
        (),
        {"": "compute_s"},
    ),
    ("teacher_student_queue_seconds", "Seconds a student's calls waited for the engine.", (), {"": "queue_s"}),
    ("teacher_student_calls", "Calls of a student that the engine ran.", (), {"": "calls"}),
    ("teacher_student_tokens", "Tokens charged to a student.", (), {"": "tokens"}),
    (
        "teacher_student_transfer_bytes",
        "Bytes of a student's calls.",
        ("direction",),
        {"received": "received_bytes", "sent": "sent_bytes"},
    ),
    ("teacher_student_steps", "Codec steps applied for a student.", (), {"": "steps"}),
    (
        "teacher_student_errors",
        "Calls of a student that were refused for now, or that failed.",
        ("kind",),
        {"refused": "refused", "failed": "failed"},
    ),
)


def _clean(name: str) -> str:
    return "".join(each if each.isprintable() else "?" for each in name[:_CHARACTERS])
