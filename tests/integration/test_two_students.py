"""Two students in two processes train at once against one server in a third; each ends as when alone."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tests.integration.processes import ROOT, Address

Student = subprocess.Popen[str]


@contextmanager
def student(name: str, seed: int, *addresses: Address) -> Iterator[Student]:
    places = [address.name for address in addresses]
    command = [sys.executable, "-m", "tests.integration.student_process", name, str(seed), *places]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def line(process: Student) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def train_at_once(processes: Sequence[Student]) -> list[dict[str, Any]]:
    for process in processes:
        assert line(process) == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    return [json.loads(line(process)) for process in processes]


def test_each_ends_with_the_weights_it_gets_when_alone(servers: dict[str, Address]) -> None:
    both = servers["together"]
    with student("ann", 1, servers["alone_a"], both) as ann, student("bob", 2, servers["alone_b"], both) as bob:
        alone = train_at_once([ann]) + train_at_once([bob])
        together = train_at_once([ann, bob])
        assert [process.wait(30) for process in (ann, bob)] == [0, 0]
    assert together[0]["start"] < together[1]["end"]
    assert together[1]["start"] < together[0]["end"], "they did not train at the same time"
    for one, other in zip(alone, together, strict=True):
        assert one["steps"] == other["steps"] == 12
        assert one["student"] == other["student"]
        assert one["session"] == other["session"]
    assert alone[0]["student"] != alone[1]["student"]
    assert alone[0]["session"] != alone[1]["session"]
