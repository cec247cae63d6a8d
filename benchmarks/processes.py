"""Server processes for benchmarks: start, address, end."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple


class Started(NamedTuple):
    pid: int
    line: str


@contextmanager
def process(*command: str, python: str = sys.executable) -> Iterator[Started]:
    """Runs `python COMMAND`; gives its id and the first line it prints; the process ends with the block."""
    process = subprocess.Popen([python, *command], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline().strip()
        if not line:
            raise SystemExit(f"{' '.join(command)} did not start")
        yield Started(process.pid, line)
    finally:
        process.terminate()
        process.wait(timeout=30)


@contextmanager
def started(*command: str) -> Iterator[str]:
    """The same; gives the line only."""
    with process(*command) as found:
        yield found.line
