"""Thousands of steps and of sessions: memory, threads and descriptors of both sides stay flat."""

from __future__ import annotations

import gc
import itertools
import multiprocessing
import statistics
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import psutil
import pytest
import torch

from student_client import RemoteTeacher
from teacher_server.app import TeacherApp
from teacher_server.config import ServerConfig
from teacher_server.models.split import FrozenTeacher
from teacher_server.sessions import sessions
from tests.calls import WIDTH
from tests.chaos.world import TeacherProcess, chaos_config, ended, log_of, student_process
from tests.unit.teacher_server.tiny_models import tiny_model, tiny_tokenizer

MIB = 2**20
NUMBERS = itertools.count()
SLACK_MIB = 12.0
"""What the resident memory may grow from the first third to the last: allocators round, a leak does not stop."""


@dataclass
class Sample:
    """What a process holds at a moment."""

    rss_mib: float
    threads: int
    descriptors: int


class Watch:
    """Samples of one process."""

    def __init__(self, name: str, pid: int) -> None:
        self.name, self._process = name, psutil.Process(pid)
        self.samples: list[Sample] = []

    def look(self) -> None:
        with self._process.oneshot():
            rss = self._process.memory_info().rss / MIB
            self.samples.append(Sample(rss, self._process.num_threads(), self._process.num_fds()))

    def check(self, per: int) -> None:
        """The last third is as the one after the warm-up third was; `per` is how many steps or sessions there were."""
        third = len(self.samples) // 3
        assert third >= 2, f"{len(self.samples)} samples are too few"
        early, late = self.samples[third : 2 * third], self.samples[-third:]
        grown = statistics.median(each.rss_mib for each in late) - statistics.median(each.rss_mib for each in early)
        threads = [max(each.threads for each in part) for part in (early, late)]
        descriptors = [max(each.descriptors for each in part) for part in (early, late)]
        print(
            f"\n{self.name}: {per} in all, resident {early[0].rss_mib:.1f} -> {late[-1].rss_mib:.1f} MiB (medians {grown:+.2f}), "
            f"threads {threads[0]} -> {threads[1]}, descriptors {descriptors[0]} -> {descriptors[1]}"
        )
        assert grown < SLACK_MIB, f"{self.name} grew by {grown:.1f} MiB"
        assert threads[1] <= threads[0] + 1, f"{self.name}: {threads} threads"
        assert descriptors[1] <= descriptors[0] + 2, f"{self.name}: {descriptors} descriptors"


@pytest.mark.parametrize("steps", [150, pytest.param(10_000, marks=pytest.mark.soak)])
@pytest.mark.timeout(900)
def test_steps(model_folder: Callable[[str], Path], tmp_path: Path, steps: int) -> None:
    """A talking run with rewind points, validations and checkpoints on the way."""
    every = steps // 10
    fields = {
        "training__rewind_steps": 50,
        "training__evaluate_every": every,
        "training__checkpoint_every": every,
        "training__log_every": every,
    }
    with TeacherProcess(model_folder("bert")) as teacher:
        config = chaos_config(tmp_path, "soak", teacher.address, steps, **fields)
        with student_process(config) as student:
            assert teacher.process is not None
            assert teacher.process.pid is not None
            assert student.pid is not None
            watches = [Watch("teacher", teacher.process.pid), Watch("student", student.pid)]
            journal = config.output / "metrics.jsonl"
            while student.is_alive() and not (config.output / "result.json").exists():
                if journal.exists() and journal.stat().st_size:  # it trains
                    for watch in watches:
                        watch.look()
                time.sleep(min(1.0, steps / 2000))
            assert ended(config, student).result["steps"] == steps, log_of(config)
    for watch in watches:
        watch.check(steps)


@pytest.mark.parametrize("cycles", [60, pytest.param(1000, marks=pytest.mark.soak)])
@pytest.mark.timeout(900)
def test_sessions_that_come_and_go(model_folder: Callable[[str], Path], cycles: int) -> None:
    """Enrol, one whole step, leave; the client's process is this one."""
    with TeacherProcess(model_folder("bert")) as teacher:
        teacher.wait_until_it_serves()
        assert teacher.process is not None
        assert teacher.process.pid is not None
        watches = [Watch("teacher", teacher.process.pid), Watch("client", psutil.Process().pid)]
        for cycle in range(cycles):
            with RemoteTeacher(teacher.address, student=f"s{cycle}", message_width=WIDTH) as session:
                session(torch.randn(2, 3, WIDTH)).sum().backward()
                session.step(lr=0.1)
                session.import_state(session.export_state())
            if cycle % (cycles // 30) == 0:
                for watch in watches:
                    watch.look()
    for watch in watches:
        watch.check(cycles)


@pytest.mark.parametrize(("first", "more"), [(60, 100), pytest.param(4200, 400, marks=pytest.mark.soak)])
@pytest.mark.timeout(1800)
def test_a_session_leaves_no_object_behind(first: int, more: int) -> None:
    """Objects are counted, of server and client alike, which no allocator rounds; in a process where no other test has been.

    Once the ids of ended sessions that are remembered are as many as may be (4,096; 20 in the short version), a further
    session costs none. Of three counts the lowest is taken: something else in this process may begin to be used in one.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        blocks, threads, samples = zip(*pool.submit(counted, first, more).result(), strict=True)
    grown = [after - before for before, after in pairwise(blocks)]
    print(f"\n{more} sessions after {first}, three times: {grown} blocks of {blocks[0]}")
    assert min(grown) < more, "not one object a session"
    assert max(threads) <= threads[0] + 1
    assert samples[-1] == samples[0], "no series belongs to a student"


def counted(first: int, more: int) -> list[tuple[int, int, int]]:
    """Blocks, threads and series after so many sessions, and after so many more three times."""
    if first < 4096:
        sessions._REMEMBERED_ENDS = 20
    config = ServerConfig(model="tiny", entry=1, exit=3, port=0, metrics_port=-1, metrics_students=0, threads=1)
    counts = []
    with TeacherApp(config, FrozenTeacher(tiny_model("bert"), "tiny-bert", tokenizer=tiny_tokenizer())) as app:
        come_and_go(app, first)
        for _ in range(4):
            gc.collect()
            instruments = sum(len(family.samples) for family in app.metrics.registry.collect())
            counts.append((sys.getallocatedblocks(), threading.active_count(), instruments))
            come_and_go(app, more)
    return counts


def come_and_go(app: TeacherApp, times: int) -> None:
    for _ in range(times):
        name = f"s{next(NUMBERS)}"
        with RemoteTeacher(f"127.0.0.1:{app.port}", student=name, message_width=WIDTH) as teacher:
            teacher(torch.ones(2, 3, WIDTH)).sum().backward()
            teacher.step(lr=0.1)
            teacher.import_state(teacher.export_state())
