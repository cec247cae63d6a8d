"""How many students fit and how many can be served, from sizes and measured seconds; pure arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["BUSY", "Measured", "Room", "Sizes", "students_served"]

BUSY = 0.8
"""Share of its time that a device is planned to compute: beyond it students mostly wait for each other."""


@dataclass(frozen=True)
class Sizes:
    """Bytes: of the weights, of one student's session, of one step's graph, message and kept replies, and the server's budgets."""

    weights: int
    session: int
    graph: int
    message: int
    replies: int
    knowledge_budget: int
    graph_budget: int
    state_budget: int


@dataclass(frozen=True)
class Room:
    """What fits into a memory.

    Attributes:
        memory: bytes there are.
        sizes: what is put in.
        max_sessions: the server's own limit.
        replies_here: whether kept replies lie in the same memory, as on a CPU.
    """

    memory: int
    sizes: Sizes
    max_sessions: int
    replies_here: bool

    @property
    def fixed(self) -> int:
        """Weights, the knowledge cache at its budget, and room for one step at work: its graph, gradients as large again."""
        return self.sizes.weights + self.sizes.knowledge_budget + 2 * self.sizes.graph

    @property
    def left(self) -> int:
        """For students; negative where not even the model fits."""
        return self.memory - self.fixed

    @property
    def student(self) -> int:
        """What one student takes even while it does nothing."""
        return self.sizes.session + (self.sizes.replies if self.replies_here else 0)

    @property
    def sessions(self) -> int:
        """Students that fit if their graphs are not kept: a Backward runs its Forward again, some 1.5 times the time."""
        fitting = max(0, self.left) // max(1, self.student)
        return min(fitting, self.max_sessions, self.sizes.state_budget // max(1, self.sizes.session))

    @property
    def kept(self) -> int:
        """Students that fit with a step in flight each whose graph is kept, with a `graph_cache_bytes` that allows it."""
        return min(self.sessions, max(0, self.left) // max(1, self.student + self.sizes.graph))

    @property
    def kept_by_budget(self) -> int:
        """The same within the configured `graph_cache_bytes`."""
        return min(self.kept, self.sizes.graph_budget // max(1, self.sizes.graph))


@dataclass(frozen=True)
class Measured:
    """A whole step (Forward, Backward, Step) of so many rows, and the bytes of its kept graph as the engine counts them."""

    rows: int
    seconds: float
    graph_bytes: int


def students_served(measured: Sequence[Measured], rows: int, every_s: float, *, merged: bool) -> int:
    """Students that may each ask for a step of `rows` rows every `every_s` seconds while the device is BUSY of the time.

    Args:
        measured: steps of `rows` rows and of larger batches.
        rows: of one student's step.
        every_s: seconds from one step of a student to its next.
        merged: whether students' rows run as one batch, of the measured size that costs least a row; else one by one.
    """
    alone = next(each.seconds / each.rows for each in measured if each.rows == rows)
    per_row = min(each.seconds / each.rows for each in measured) if merged else alone
    return int(BUSY * every_s / (rows * per_row))
