"""Processes that work in windows: each loads once, then idles until it is told to, so that the sides of a run can alternate.

A worker reads orders from its standard input, one line of JSON each, runs steps until the window ends, and answers how many
there were. Needs torch and nothing of this project, so that peers in a virtual environment of their own run in it too.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Self

LEAD_S = 0.5  # work before the window, not counted
ANSWER_S = 120.0  # after this long a worker hangs


class Worker:
    """A worker's process; `ready` is what it said when it had loaded."""

    def __init__(self, *command: str, python: str = sys.executable) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the process
        self._process = subprocess.Popen(
            [python, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True
        )
        self.pid, self.ready = self._process.pid, {}

    def wait_ready(self) -> Self:
        self.ready = self.answer()
        return self

    def order(self, **order: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        is_there, _, _ = select.select([self._process.stdout], [], [], ANSWER_S)
        line = self._process.stdout.readline() if is_there else ""
        if not line:
            self._process.kill()
            self._errors.seek(0)
            said = self._errors.read()[-3000:].decode(errors="replace")
            raise SystemExit(f"{self._process.args} {'ended' if is_there else 'hangs'}:\n{said}")
        return dict(json.loads(line))

    def close(self) -> None:
        """Ends its input, and with it the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._errors.close()


class Workers(list[Worker]):
    """Workers that end with the block."""

    def __enter__(self) -> Self:
        return self

    def add(self, commands: Iterable[Sequence[str]], python: str = sys.executable, at_once: int = 4) -> list[Worker]:
        """Starts these, so many at a time, and waits until they have loaded."""
        added: list[Worker] = []
        waiting = list(commands)
        while waiting:
            starting = [Worker(*command, python=python) for command in waiting[:at_once]]
            self.extend(starting)
            added += [each.wait_ready() for each in starting]
            del waiting[:at_once]
        return added

    def __exit__(self, *_: object) -> None:
        for each in self:
            each.close()


def window(workers: Sequence[Worker], seconds: float, **order: Any) -> list[dict[str, Any]]:
    """Has these work at once for so long; gives each one's `steps` (parts count) and their `seconds`."""
    begin = time.monotonic() + LEAD_S
    for each in workers:
        each.order(begin=begin, end=begin + seconds, **order)
    return [each.answer() for each in workers]


def obey(prepare: Callable[[dict[str, Any]], Callable[[], object]], **ready: Any) -> None:
    """Is a worker until the standard input ends: `prepare` makes an order into a step, which runs until the window is over."""
    import torch

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    print(json.dumps(ready), file=answers, flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        torch.set_num_threads(order["threads"])
        print(json.dumps(_worked(prepare(order), order["begin"], order["end"])), file=answers, flush=True)


def _worked(step: Callable[[], object], begin: float, end: float) -> dict[str, Any]:
    """A step that lies across an end of the window counts by the part of it that lies inside."""
    steps, seconds = 0.0, []
    while (started := time.monotonic()) < end:
        step()
        over = time.monotonic()
        steps += max(0.0, min(over, end) - max(started, begin)) / (over - started)
        if over > begin:
            seconds.append(over - started)
    return {"steps": steps, "seconds": seconds}
