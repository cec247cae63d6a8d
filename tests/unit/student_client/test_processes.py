"""How processes on one machine share its cores out, and what a process begins with."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from student_client.processes import cores, process, python, shared_threads


def test_threads_never_outnumber_the_cores_unless_the_processes_do() -> None:
    for count in range(1, 4 * cores()):
        assert shared_threads(count) >= 1
        assert shared_threads(count) * count <= max(cores(), count)
    assert shared_threads(1) == cores()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="cores cannot be taken from a process here")
def test_cores_are_those_this_process_may_use() -> None:
    mine = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(mine)})
        assert cores() == 1
    finally:
        os.sched_setaffinity(0, mine)


def test_a_process_begins_with_its_threads(tmp_path: Path) -> None:
    command = python("timeit", "-n1", "-r1", "import torch; print('threads', torch.get_num_threads())")
    for threads in (1, cores()):
        with process(command, tmp_path / "log", subprocess.PIPE, threads=threads) as started:
            assert started.stdout is not None
            assert started.stdout.readline() == f"threads {threads}\n"
