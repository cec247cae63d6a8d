"""Feeds one target with a number of mutated inputs: `python -m tests.fuzz unpack --inputs 100000 --seed 1`.

Fails on anything but a typed error: another exception, a crash, one input that takes longer than 5 s, memory that grows, or an
allocation that the input's size does not justify. The input under way lies in a file, so that even a crash leaves it behind.
"""

from __future__ import annotations

import argparse
import faulthandler
import gc
import mmap
import os
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from random import Random
from types import FrameType

import torch

from tests.fuzz.targets import TARGETS, outcome

_LONGEST_S = 5.0
_GROWTH_BYTES = 64 * 2**20
_ROOM_BYTES = 2 * 2**30
_INPUT_BYTES = 2**20


def resident() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def hangs(signum: int, frame: FrameType | None) -> None:
    raise TimeoutError(f"one input took more than {_LONGEST_S:g} s")


def fuzz(name: str, inputs: int, seed: int, last: mmap.mmap) -> tuple[Counter[str], int]:
    """How the inputs ended, by outcome, and the bytes the process has grown by since a tenth of them."""
    feed, random, found, early = TARGETS[name](), Random(seed), Counter[str](), 0
    signal.signal(signal.SIGALRM, hangs)
    for number in range(inputs):
        data, use = feed(random)
        last.seek(0)
        last.write(len(data).to_bytes(8, "little") + data[: _INPUT_BYTES - 8])
        signal.setitimer(signal.ITIMER_REAL, _LONGEST_S)
        found[outcome(use)] += 1
        signal.setitimer(signal.ITIMER_REAL, 0)
        if number == inputs // 10:
            early = resident()
    return found, resident() - early


def main() -> None:
    parser = argparse.ArgumentParser(prog="tests.fuzz", description=__doc__)
    parser.add_argument("target", choices=sorted(TARGETS))
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    faulthandler.enable()
    size = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (size + _ROOM_BYTES, size + _ROOM_BYTES))
    with tempfile.NamedTemporaryFile(prefix=f"fuzz-{given.target}-", delete=False) as file:
        file.truncate(_INPUT_BYTES)
        path = Path(file.name)
        with mmap.mmap(file.fileno(), _INPUT_BYTES) as last:
            began = time.monotonic()
            try:
                found, grown = fuzz(given.target, given.inputs, given.seed, last)
            except BaseException:
                said = f"{given.target}: the input that did it is in {path} (8 bytes of length, then the input)"
                print(said, file=sys.stderr)
                raise
    path.unlink()
    ways = ", ".join(f"{count} {name}" for name, count in found.most_common())
    head = f"{given.target}: {given.inputs} inputs, seed {given.seed}, {time.monotonic() - began:.0f} s"
    print(f"{head}: {ways}; grown by {grown / 2**20:.1f} MiB")
    assert found.total() == given.inputs
    assert grown < _GROWTH_BYTES, f"the process has grown by {grown} bytes"


if __name__ == "__main__":
    main()
