"""Server processes for benchmarks: start, address, end."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": "536870912",
    "MALLOC_TRIM_THRESHOLD_": "1073741824",
    "MALLOC_TOP_PAD_": "268435456",
    "MALLOC_ARENA_MAX": "1",
}


@contextmanager
def started(*command: str, environment: dict[str, str] | None = None) -> Iterator[str]:
    """Runs `python COMMAND` and gives the first line it prints; the process ends with the block."""
    process = subprocess.Popen(
        [sys.executable, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | (environment or {}),
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline().strip()
        if not line:
            raise SystemExit(f"{' '.join(command)} did not start")
        yield line
    finally:
        process.terminate()
        process.wait(timeout=30)
