"""Processes of the product's own commands, ended with whoever started them; knows no model and no method."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from teaching_protocol.errors import TeacherUnavailable

__all__ = [
    "Served",
    "child_environment",
    "cores",
    "end",
    "end_with_input",
    "last_line",
    "process",
    "python",
    "shared_threads",
    "start",
    "teacher_server",
]

_PATIENCE_S = 15.0
_FIELDS = ("STUDENT_CLIENT_", "TEACHER_SERVER_")  # variables that set fields: read once, by whoever starts others


@dataclass(frozen=True)
class Served:
    """A teacher server that answers: `host:port` of its two ports, and its process."""

    address: str
    metrics: str
    process: subprocess.Popen[str]


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def shared_threads(processes: int) -> int:
    """Compute threads of each of several processes that share this machine out: more than there are cores is a cliff."""
    return max(1, cores() // processes)


def python(module: str, *arguments: str | Path) -> list[str]:
    """The command line of a module under this interpreter."""
    return [sys.executable, "-m", module, *map(str, arguments)]


def child_environment(threads: int) -> dict[str, str]:
    """What a process of ours begins with: no model hub, its threads, and no field of a configuration but those it is given."""
    mine = {name: value for name, value in os.environ.items() if not name.startswith(_FIELDS)}
    return mine | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}


def start(
    command: list[str],
    log: Path,
    stdout: int | None = None,
    stdin: int | None = None,
    threads: int = 1,
    cores: Collection[int] = (),
    apart: bool = False,
) -> subprocess.Popen[str]:
    """Starts a process without model hub; whoever starts it ends it.

    Args:
        command: its command line.
        log: file of its standard error, and of its standard output where `stdout` says nothing else.
        stdout: as of `subprocess.Popen`.
        stdin: as of `subprocess.Popen`; None gives it nothing to read.
        threads: compute threads that it begins with.
        cores: the cores it may run on; none given are those of this process.
        apart: whether it has a process group of its own, which Ctrl-C does not reach, and its log goes on after an earlier one.
    """
    with log.open("a" if apart else "w") as errors, _only_on(cores):
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL if stdin is None else stdin,
            stdout=stdout or errors,
            stderr=errors,
            text=True,
            env=child_environment(threads),
            process_group=0 if apart else None,
        )


@contextmanager
def _only_on(cores: Collection[int]) -> Iterator[None]:
    """This thread on some cores alone: a process that it starts meanwhile has them from its first instruction."""
    if not cores or not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def process(
    command: list[str], log: Path, stdout: int | None = None, stdin: int | None = None, threads: int = 1
) -> Iterator[subprocess.Popen[str]]:
    """A process without model hub, while the context is open; it is ended with the context. Arguments as of `start`."""
    started = start(command, log, stdout, stdin, threads)
    try:
        yield started
    finally:
        end(started)


def end_with_input(limit_s: float) -> None:
    """Has this process told to end, as by SIGTERM, once its standard input is closed; it is gone `limit_s` later at the latest.

    Whoever started it holds the other end, which the system closes when they end, however they end.
    """

    def watch() -> None:
        while os.read(sys.stdin.fileno(), 4096):
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(limit_s)
        os._exit(1)

    threading.Thread(target=watch, name="input", daemon=True).start()


def end(started: subprocess.Popen[str]) -> None:
    """Ends a process: asked first, killed when it does not listen; harmless when repeated."""
    started.terminate()
    try:
        started.wait(timeout=_PATIENCE_S)
    except subprocess.TimeoutExpired:
        started.kill()
        started.wait()
    for stream in (started.stdin, started.stdout):
        if stream is not None and not stream.closed:
            stream.close()


@contextmanager
def teacher_server(settings: Mapping[str, Any], config: Path, log: Path) -> Iterator[Served]:
    """A teacher server on free ports, while the context is open; it ends with this process, even if that is killed.

    It has one compute thread, unless `settings` say otherwise.

    Args:
        settings: fields of its configuration; `model` is one of them.
        config: where they are written.
        log: file of what it says.

    Raises:
        TeacherUnavailable: it ended before it served; its log is named.
    """
    fields = {"port": 0, "metrics_port": 0, "threads": 1, "ends_with_input": True, **settings}
    config.write_text(json.dumps(fields))
    command = python("teacher_server", "serve", "--config", config)
    with process(command, log, subprocess.PIPE, subprocess.PIPE, fields["threads"]) as started:
        assert started.stdout is not None
        line = started.stdout.readline()
        if not line.startswith("serving"):
            end(started)
            raise TeacherUnavailable(f"the teacher server ended before it served: {last_line(log)}; its log is {log}")
        _, address, _, metrics = line.split()
        yield Served(address, metrics, started)


def last_line(log: Path) -> str:
    """The last line of a log."""
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"
