"""Two students in two processes train at once against one server in a third; each ends as when alone."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from tests.integration.processes import ROOT, Address


@contextmanager
def student(address: Address, name: str, seed: int) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "tests.integration.student_process", address.name, name, str(seed)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def train_at_once(processes: list[subprocess.Popen[str]]) -> list[dict[str, Any]]:
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    return [json.loads(process.stdout.readline()) for process in processes if process.stdout is not None]


def test_each_ends_with_the_weights_it_gets_when_alone(servers: dict[str, Address]) -> None:
    places = [("alone_a", "ann", 1), ("alone_b", "bob", 2), ("together", "ann", 1), ("together", "bob", 2)]
    with ExitStack() as stack:
        processes = [stack.enter_context(student(servers[place], name, seed)) for place, name, seed in places]
        alone_a, alone_b, together_a, together_b = train_at_once(processes)
        assert [process.wait(30) for process in processes] == [0] * 4
    assert together_a["start"] < together_b["end"]
    assert together_b["start"] < together_a["end"], "they did not train at the same time"
    for alone, together in ((alone_a, together_a), (alone_b, together_b)):
        assert together["steps"] == alone["steps"] == 12
        assert together["student"] == alone["student"]
        assert together["session"] == alone["session"]
    assert alone_a["student"] != alone_b["student"]
    assert alone_a["session"] != alone_b["session"]
