"""Server processes for benchmarks: start, address, end."""

from __future__ import annotations

import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

START_S = 180.0  # after this long a server hangs


class Started(NamedTuple):
    pid: int
    line: str


@contextmanager
def process(*command: str, python: str = sys.executable) -> Iterator[Started]:
    """Runs `python COMMAND`; gives its id and the first line it prints; the process ends with the block."""
    process = subprocess.Popen([python, *command], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        is_there, _, _ = select.select([process.stdout], [], [], START_S)
        line = process.stdout.readline().strip() if is_there else ""
        if not line:
            raise SystemExit(f"{' '.join(command)} {'ended' if is_there else f'said nothing for {START_S:.0f} s'}")
        yield Started(process.pid, line)
    finally:
        process.terminate()
        process.wait(timeout=30)


@contextmanager
def started(*command: str) -> Iterator[str]:
    """The same; gives the line only."""
    with process(*command) as found:
        yield found.line
