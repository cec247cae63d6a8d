"""How large a student or a teacher is and how long a batch takes it, as a value; measures nothing."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Footprint"]


@dataclass(frozen=True)
class Footprint:
    """Parameters, bytes of them and of buffers, and milliseconds a batch of `rows` takes; 0 is not known."""

    parameters: int = 0
    size_bytes: int = 0
    batch_ms: float = 0.0
    rows: int = 0

    def __str__(self) -> str:
        time = f", {self.batch_ms:.1f} ms for {self.rows} rows" if self.batch_ms else ""
        return f"{self.parameters / 1e6:.2f} M parameters, {self.size_bytes / 1e6:.1f} MB{time}"
