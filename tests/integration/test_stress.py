"""Students join, leave, stall, cancel, poison, are stopped and killed at random: no wrong number, no leak, nothing stuck."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from student_client import RemoteTeacher
from tests.calls import good_step
from tests.integration.gate import poll
from tests.integration.processes import ROOT, Address, ServerProcess
from tests.integration.stress_student import Student, poison, twin_teacher

LEASE_S = 2.0
CROWD_LEASE_S = 5.0


@pytest.fixture(scope="module")
def servers(model_folder: Callable[[str], Path]) -> Iterator[dict[str, Address]]:
    """`tight` in everything: permits, graphs, kept inputs, lease; and `crowd`, with few permits and a longer lease."""
    model = {"model": str(model_folder("bert"))}
    limits = {"graph_cache_bytes": 400_000, "session_input_bytes": 1_000, "refused_strikes": 6, "refused_s": 0.5}
    configs = {
        "tight": {**model, **limits, "permits": 12, "lease_s": LEASE_S},
        "crowd": {**model, "permits": 12, "lease_s": CROWD_LEASE_S},
    }
    process = ServerProcess(configs)
    yield process.addresses
    assert process.close() == 0


class Victims:
    """Student processes that are killed, or stopped for longer than their lease and let go on."""

    def __init__(self, address: str, count: int, seed: int) -> None:
        self._address = address
        self._random = random.Random(seed)
        self._number = 0
        self.processes = [self._start() for _ in range(count)]

    def _start(self) -> subprocess.Popen[str]:
        self._number += 1
        name, seed = f"process-{self._number}", str(self._random.randrange(10**6))
        command = [sys.executable, "-m", "tests.integration.stress_student", self._address, name, seed]
        return subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def trouble(self) -> None:
        """Kills one and starts another in its place, or stops one for longer than its lease."""
        place = self._random.randrange(len(self.processes))
        process = self.processes[place]
        assert process.poll() is None, "a student ended by itself: it saw a wrong number, or an error"
        if self._random.random() < 0.5:
            process.kill()
            process.communicate()
            self.processes[place] = self._start()
        else:
            process.send_signal(signal.SIGSTOP)
            time.sleep(1.5 * LEASE_S)
            process.send_signal(signal.SIGCONT)

    def end(self) -> int:
        """Lets all end by themselves; gives how many replies they checked."""
        checked = 0
        for process in self.processes:
            output = process.communicate("", timeout=60)[0].split()
            assert process.returncode == 0, output
            assert output[0] == "ready"
            checked += int(output[1])
        return checked

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.communicate()


@contextmanager
def closing(victims: Victims) -> Iterator[Victims]:
    try:
        yield victims
    finally:
        victims.close()


def stress(server: Address, seconds: float, threads: int, processes: int) -> None:
    seed = random.randrange(10**6)
    print("seed", seed)  # noqa: T201
    end = time.monotonic() + seconds
    ending = threading.Event()

    def over() -> bool:
        return ending.is_set() or time.monotonic() > end

    local = twin_teacher()
    students = [Student(server.name, f"thread-{number}", seed + number, local, over) for number in range(threads)]
    with closing(Victims(server.name, processes, seed)) as victims, ThreadPoolExecutor(threads + 1) as pool:
        running = [pool.submit(student.run) for student in students]
        poisoner = pool.submit(poison, server.name, over)
        try:
            while not over():
                victims.trouble()
                ending.wait(0.5)
        finally:
            ending.set()
        checked = sum(each.result(90).checked for each in running)
        told = poisoner.result(90)
        checked += victims.end()
    assert checked > 10 * threads, "hardly anything was checked"
    assert told >= 1
    everything_is_back(server)


def everything_is_back(server: Address) -> None:
    gauges = ("teacher_in_flight", "teacher_open_calls", "teacher_sessions", "teacher_graph_cache_bytes")
    for gauge in gauges:
        poll(lambda gauge=gauge: server.metric(gauge) == 0, f"{gauge} is back to 0", 30)
    assert server.metric("teacher_rejected_total", reason="InternalError") == 0
    assert good_step(server.name, "after")


def test_a_short_storm(servers: dict[str, Address]) -> None:
    stress(servers["tight"], 12.0, threads=8, processes=2)


@pytest.mark.slow
def test_a_long_storm(servers: dict[str, Address]) -> None:
    stress(servers["tight"], 90.0, threads=16, processes=4)


def test_no_session_of_many_is_lost_under_full_load(servers: dict[str, Address]) -> None:
    """64 sessions live by their heartbeats alone for two leases, while 16 others load the server to its last permit."""
    server = servers["crowd"]
    over = threading.Event()
    local = twin_teacher()
    loads = [Student(server.name, f"load-{number}", number, local, over.is_set) for number in range(16)]
    idle = [RemoteTeacher(server.name, student=f"idle-{number}", message_width=8, seed=0) for number in range(64)]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(RemoteTeacher.enroll, idle))
        before = server.metric("teacher_requests_total", method="Renew", code="OK")
        lost = server.metric("teacher_session_ends_total", cause="lease")
        running = [pool.submit(student.run) for student in loads]
        over.wait(2 * CROWD_LEASE_S)
        over.set()
        for each in running:
            assert each.result(90).lost == 0
        assert server.metric("teacher_session_ends_total", cause="lease") == lost
        assert server.metric("teacher_sessions") == 64
        assert server.metric("teacher_requests_total", method="Renew", code="OK") - before >= 2 * 64
        list(pool.map(RemoteTeacher.leave, idle))
    everything_is_back(server)
