"""A device that is slow for as long as a test says: computing waits while the file `closed` exists."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

__all__ = ["Gate", "poll"]

LIMIT_S = 60.0


def poll(condition: Any, what: str, limit_s: float = 20.0) -> Any:
    """Waits until the condition gives something true, and gives that."""
    end = time.monotonic() + limit_s
    while not (found := condition()):
        assert time.monotonic() < end, f"{what}: not within {limit_s} s"
        time.sleep(0.002)
    return found


class Gate:
    """Both ends of the gate: the server's process holds its model at it, the test closes and opens it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.closed_file = folder / "closed"
        self.entered_file = folder / "entered"

    @contextmanager
    def closed(self) -> Iterator[Gate]:
        """Whatever enters the model inside waits there until the end of the block."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.entered_file.unlink(missing_ok=True)
        self.closed_file.touch()
        try:
            yield self
        finally:
            self.open()

    def open(self) -> None:
        """Lets go of what waits."""
        self.closed_file.unlink(missing_ok=True)

    def wait_until_entered(self) -> None:
        """Returns once a call has reached the model."""
        poll(self.entered_file.exists, "a call reaches the model")

    def hold(self, module: nn.Module, arguments: Any) -> None:
        """A forward pre-hook for the server's side."""
        if self.closed_file.exists():
            self.entered_file.touch()
            end = time.monotonic() + LIMIT_S
            while self.closed_file.exists() and time.monotonic() < end:
                time.sleep(0.002)
