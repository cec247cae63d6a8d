"""How large a student or a teacher is and how fast, as a value and as rows of a table; measures nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["SIZE_COLUMNS", "TEACHER", "Footprint", "as_values", "size_rows"]

TEACHER = "teacher"
"""What begins the name of a teacher among models that were weighed together."""

SIZE_COLUMNS = ("model", "parameters", "on disk", "rows a second", "smaller", "faster")
_NOTHING = "–"


@dataclass(frozen=True)
class Footprint:
    """Parameters, bytes of them and of buffers, milliseconds a batch of `rows` takes, bytes on the disk; 0 is not known.

    On the disk is what a student saves, all of it; of a teacher it is its weights as they are served.
    """

    parameters: int = 0
    size_bytes: int = 0
    batch_ms: float = 0.0
    rows: int = 0
    disk_bytes: int = 0

    @property
    def rows_per_s(self) -> float:
        """Rows a second; 0 is not known."""
        return 1e3 * self.rows / self.batch_ms if self.batch_ms else 0.0

    def __str__(self) -> str:
        disk = f", {self.disk_bytes / 1e6:.1f} MB on disk" if self.disk_bytes else f", {self.size_bytes / 1e6:.1f} MB"
        time = f", {self.rows_per_s:.0f} rows/s ({self.batch_ms:.1f} ms for {self.rows})" if self.batch_ms else ""
        return f"{self.parameters / 1e6:.2f} M parameters{disk}{time}"


def as_values(sizes: Mapping[str, Footprint]) -> dict[str, dict[str, Any]]:
    """JSON values of models that were weighed together, by name."""
    return {name: vars(found) | {"rows_per_s": found.rows_per_s} for name, found in sizes.items()}


def size_rows(sizes: Mapping[str, Footprint]) -> Iterator[tuple[str, ...]]:
    """A row of `SIZE_COLUMNS` for each model; the last two hold it against the first teacher there is."""
    teacher = next((found for name, found in sizes.items() if name.startswith(TEACHER)), Footprint())
    for name, found in sizes.items():
        against = (_NOTHING, _NOTHING)
        if found is not teacher:
            against = (
                _times(teacher.parameters, found.parameters),
                _times(found.rows_per_s, teacher.rows_per_s),
            )
        yield (
            name,
            f"{found.parameters / 1e6:.2f} M",
            f"{found.disk_bytes / 1e6:.1f} MB" if found.disk_bytes else _NOTHING,
            f"{found.rows_per_s:.0f}" if found.rows_per_s else _NOTHING,
            *against,
        )


def _times(more: float, less: float) -> str:
    return f"{more / less:.1f}x" if more and less else _NOTHING
