"""Networks that delay, cut, reset, hold and repeat: the run ends with the bits of one on a good network."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.chaos.proxy import Proxy
from tests.chaos.relay import repeating
from tests.chaos.world import (
    Ended,
    TeacherProcess,
    assert_same,
    chaos_config,
    ended,
    free_port,
    log_of,
    student_process,
    wait_for_step,
)
from tests.integration.gate import poll

STEPS = 50
Models = Callable[[str], Path]
Whole = Callable[..., Ended]
SHORT = [("reset", 2)]
LONG = [("reset", 20), ("cut", 0), ("hold", 3), ("delay", 0)]
CASES = [*SHORT, *(pytest.param(*case, marks=pytest.mark.chaos) for case in LONG)]


@pytest.mark.parametrize(("what", "times"), CASES)
def test_a_bad_network(model_folder: Models, whole: Whole, tmp_path: Path, what: str, times: int) -> None:
    rng, steps = random.Random(times), STEPS if times < 5 else STEPS + 5 * times
    fields = {"teacher__deadline_s": 2.0}
    with TeacherProcess(model_folder("bert")) as teacher, Proxy(teacher.port) as proxy:
        config = chaos_config(tmp_path, "broken", proxy.address, steps, teacher__shared_memory=False, **fields)
        proxy.delay_s = 0.01 if what == "delay" else 0.0
        with student_process(config) as student:
            step = wait_for_step(config, student, 2)
            proxy.cut_after = 200_000 if what == "cut" else 0
            for _ in range(times):
                if what == "hold":  # nothing passes for longer than any call may take
                    before = log_of(config).count("the teacher is lost")
                    proxy.is_open = False
                    poll(lambda: log_of(config).count("the teacher is lost") > before, "the student hears nothing", 60)  # noqa: B023
                    proxy.is_open = True
                else:
                    proxy.reset()
                step = wait_for_step(config, student, step + rng.randrange(4))
            broken = ended(config, student)
        assert proxy.resets >= (times if what == "reset" else 0)
        assert (proxy.cuts > 0) is (what == "cut")
    assert_same(broken, whole(steps), steps)
    assert broken.result["recoveries"] >= (times if what == "hold" else 0)


def test_calls_that_are_repeated_at_once_and_late(model_folder: Models, whole: Whole, tmp_path: Path) -> None:
    """With a death in the middle, so that calls of an earlier epoch, and from before the rewind, come late, too."""
    with TeacherProcess(model_folder("bert")) as teacher:
        teacher.wait_until_it_serves()
        with repeating(teacher.address, 1) as (address, repeats):
            config = chaos_config(tmp_path, "broken", address, STEPS, teacher__shared_memory=False)
            with student_process(config) as student:
                wait_for_step(config, student, 22)
                teacher.kill()
                teacher.start()
                broken = ended(config, student)
    assert_same(broken, whole(STEPS), STEPS)
    assert broken.result["recoveries"] >= 1
    assert min(repeats.get(name, 0) for name in ("Forward", "Backward", "Step")) > 5


@contextmanager
def _two_namespaces() -> Iterator[tuple[str, str]]:
    """A network namespace for the teacher, joined to ours by a pair of interfaces: its name, and the link's at our end."""
    name, near, far = f"teach{os.getpid() % 10_000}", f"tn{os.getpid() % 10_000}", f"tf{os.getpid() % 10_000}"
    _ip("netns", "add", name)
    try:
        _ip("link", "add", near, "type", "veth", "peer", "name", far)
        _ip("link", "set", far, "netns", name)
        _ip("addr", "add", "10.213.7.1/24", "dev", near)
        _ip("link", "set", near, "up")
        _ip("-n", name, "addr", "add", "10.213.7.2/24", "dev", far)
        _ip("-n", name, "link", "set", far, "up")
        _ip("-n", name, "link", "set", "lo", "up")
        yield name, near
    finally:
        _ip("netns", "del", name)  # the pair goes with it


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, timeout=20, check=False)
    if done.returncode:
        pytest.skip(f"this machine makes no network namespaces: ip {' '.join(words)}: {done.stderr.strip()}")


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("ip") is None, reason="needs root and iproute2")
@pytest.mark.chaos
def test_the_link_between_two_machines_goes_down(model_folder: Models, whole: Whole, tmp_path: Path) -> None:
    """Two network namespaces: packets are lost without a word, for longer than a call may take."""
    port = free_port()
    with _two_namespaces() as (name, link):
        words = ["ip", "netns", "exec", name, sys.executable, "-m", "teacher_server", "serve"]
        words += ["--model", str(model_folder("bert"))]
        words += ["--host", "10.213.7.2", "--insecure", "--port", str(port), "--metrics-port", "-1", "--threads", "1"]
        words += ["--entry", "1", "--exit", "3", "--device", "cpu", "--deterministic"]
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as server:
            try:
                assert server.stdout is not None
                assert server.stdout.readline().startswith("serving")
                config = chaos_config(
                    tmp_path,
                    "broken",
                    f"10.213.7.2:{port}",
                    STEPS,
                    teacher__deadline_s=2.0,
                    teacher__shared_memory=False,
                )
                with student_process(config) as student:
                    wait_for_step(config, student, 12)
                    _ip("link", "set", link, "down")
                    poll(lambda: "the teacher is lost" in log_of(config), "the student hears nothing", 60)
                    _ip("link", "set", link, "up")
                    broken = ended(config, student)
            finally:
                server.kill()
    assert_same(broken, whole(STEPS), STEPS)
    assert broken.result["recoveries"] >= 1


def test_the_proxy_leaves_nothing_behind() -> None:
    before = threading.active_count()
    with Proxy(1) as proxy:
        assert proxy.port > 0
    assert threading.active_count() == before
