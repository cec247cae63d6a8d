"""Split teachers for tests: followers that start fast, and servers whose processes can be killed one by one."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import psutil
import torch

from teacher_server.cli import main as command
from teacher_server.config import ServerConfig
from teacher_server.parallel.follower import follow
from teacher_server.parallel.mirrored import MirroredTeacher
from teacher_server.parallel.start import split_teacher
from tests.chaos.world import free_port, health
from tests.integration.gate import poll

__all__ = ["SplitServer", "split_here"]

_forks = multiprocessing.get_context("forkserver")


class _Forked:
    """A follower forked from a process that has everything imported."""

    def __init__(self, control: socket.socket) -> None:
        self.process: ForkServerProcess = _forks.Process(target=_follow, args=(control,), daemon=True)
        self.process.start()

    def wait(self, timeout: float | None = None) -> int:
        self.process.join(timeout)
        if self.process.exitcode is None:
            raise subprocess.TimeoutExpired("follower", timeout or 0.0)
        return self.process.exitcode

    def kill(self) -> None:
        self.process.kill()


def _follow(control: socket.socket) -> None:
    torch.set_num_threads(1)
    follow(control)


@contextmanager
def split_here(model: Path, **settings: Any) -> Iterator[tuple[MirroredTeacher, psutil.Process]]:
    """A teacher split over this process and one other, and the other."""
    started: list[_Forked] = []

    def start(control: socket.socket) -> _Forked:
        started.append(_Forked(control))
        return started[-1]

    teacher = split_teacher(ServerConfig(model=str(model), tensor_parallel=2, threads=1, **settings), start)
    try:
        yield teacher, psutil.Process(started[0].process.pid)
    finally:
        teacher.close()
    assert started[0].wait(0) == 0


def _serve(words: list[str], log: Path) -> None:
    with log.open("ab") as file:
        os.dup2(file.fileno(), 2)
    tempfile.tempdir = str(log.parent)
    torch.set_num_threads(1)
    sys.argv = ["teacher-server", *words]
    command()


class SplitServer:
    """The command `teacher-server serve --tensor-parallel 2` with both processes started, and killed at the end of the block.

    Attributes:
        log: what both say.
        follower: the other process.
    """

    def __init__(self, model: Path, folder: Path, port: int | None = None, **settings: Any) -> None:
        self.port = port or free_port()
        folder = folder / f"server-{self.port}"
        folder.mkdir(exist_ok=True)
        known = {"model": str(model), "entry": 1, "exit": 3, "port": self.port, "metrics_port": -1, "threads": 1}
        known |= {"deterministic": True, "lease_s": 10.0, **settings}
        path = folder / "server.yaml"
        path.write_text(json.dumps(known))
        self._log = folder / "server.log"
        words = ["serve", "--tensor-parallel", "2", "--config", str(path)]
        self.process: ForkServerProcess = _forks.Process(target=_serve, args=(words, self._log), daemon=True)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        return self._log.read_text()

    def wait_until_it_serves(self) -> None:
        """Returns once the health service says SERVING."""
        poll(lambda: health(self.port) == 1, "the teacher serves", 60.0)

    def __enter__(self) -> SplitServer:
        self.process.start()
        self.follower = poll(lambda: (self._children() or [None])[0], "the follower is started", 60.0)
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.join(20)
        assert gone(self.follower), "the follower ends with its server"
        assert not list(self._log.parent.glob("teacher-*")), "and leaves no file"

    def end(self) -> tuple[int | None, float]:
        """Waits for its end: the exit code and the seconds that it took."""
        began = time.monotonic()
        self.process.join(60)
        return self.process.exitcode, time.monotonic() - began

    def _children(self) -> list[psutil.Process]:
        found = psutil.Process(self.process.pid).children()
        return [each for each in found if any("parallel.follower" in word for word in each.cmdline())]


def gone(process: psutil.Process) -> bool:
    """Whether a process ends within a few seconds; one that nobody has waited for has ended."""
    try:
        poll(lambda: not process.is_running() or process.status() == psutil.STATUS_ZOMBIE, "it ends", 10.0)
    except psutil.NoSuchProcess:
        return True
    return True
