"""What one session has taken of the server and how it fared; counted where the facts are known, and knows no session.

Calls count in threads of their own and the engine in another; a lock of each usage's own, held for one addition, keeps
the sums right and nobody waiting.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from teaching_protocol.errors import Draining, Overloaded, Quarantined, TeachingError

__all__ = ["Failure", "Taken", "Usage"]

_STEPS = 64
_SENTENCE = 200  # characters
_RATE_S = 30.0
_REFUSALS = (Overloaded, Quarantined, Draining)


@dataclass(slots=True)
class Taken:
    """Totals of a session, or of several: of the engine's time, of waiting for it, of tokens charged, of bytes and calls.

    `calls` were run by the engine, `refused` were told to come back later, `failed` ended with any other error.
    """

    compute_s: float = 0.0
    queue_s: float = 0.0
    tokens: float = 0.0
    received_bytes: int = 0
    sent_bytes: int = 0
    calls: int = 0
    steps: int = 0
    refused: int = 0
    failed: int = 0

    def __add__(self, other: Taken) -> Taken:
        """The totals of both."""
        return Taken(*(getattr(self, name) + getattr(other, name) for name in self.__slots__))


@dataclass(frozen=True)
class Failure:
    """How a call ended badly: the error's class, its sentence (short and printable), and when, in seconds since 1970."""

    kind: str
    sentence: str
    at: float


class Usage:
    """What one session has taken since it was opened here.

    Attributes:
        opened: when that was, in seconds since 1970.
        last_call: when the engine last ran a call of it, or `opened`.
        last_error: the newest failure, or None.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._taken = Taken()
        self._steps: deque[float] = deque(maxlen=_STEPS)
        self.opened = self.last_call = clock()
        self.last_error: Failure | None = None

    @property
    def taken(self) -> Taken:
        """The totals as they are now, as a value."""
        with self._lock:
            return dataclasses.replace(self._taken)

    @property
    def step_times(self) -> tuple[float, ...]:
        """When the newest steps (64 at most) were applied, in seconds since 1970, oldest first."""
        with self._lock:
            return tuple(self._steps)

    @property
    def steps_per_s(self) -> float:
        """Steps a second over the last half minute, or over the life of a younger session or of the ring."""
        now, times = self._clock(), self.step_times
        recent = sum(now - each <= _RATE_S for each in times)
        is_full = len(times) == _STEPS == recent
        since = times[0] if is_full else max(self.opened, now - _RATE_S)
        return (recent - is_full) / max(now - since, 1e-3)

    def ran(self, queue_s: float, compute_s: float) -> None:
        """The engine ran a call: how long it had waited, and its share of the batch's time."""
        with self._lock:
            self._taken.queue_s += queue_s
            self._taken.compute_s += compute_s
            self._taken.calls += 1
            self.last_call = self._clock()

    def charge(self, tokens: float) -> None:
        """A call was charged tokens, by which turns are shared out."""
        with self._lock:
            self._taken.tokens += tokens

    def stepped(self) -> None:
        """A Step was applied."""
        with self._lock:
            self._taken.steps += 1
            self._steps.append(self._clock())

    def moved(self, received_bytes: int, sent_bytes: int) -> None:
        """A request came and a reply went."""
        with self._lock:
            self._taken.received_bytes += received_bytes
            self._taken.sent_bytes += sent_bytes

    def erred(self, error: TeachingError) -> None:
        """A call was refused, or failed."""
        failure = Failure(type(error).__name__, _short(str(error)), self._clock())
        with self._lock:
            if isinstance(error, _REFUSALS):
                self._taken.refused += 1
            else:
                self._taken.failed += 1
            self.last_error = failure

    @contextmanager
    def call(self, received_bytes: int) -> Iterator[None]:
        """A call of so many bytes is answered inside; an error of the tree is noted, and goes on."""
        self.moved(received_bytes, 0)
        try:
            yield
        except TeachingError as error:
            self.erred(error)
            raise


def _short(sentence: str) -> str:
    printable = "".join(each if each.isprintable() else "?" for each in sentence[: _SENTENCE + 1])
    return printable if len(printable) <= _SENTENCE else printable[: _SENTENCE - 3] + "..."
