"""Worker processes side by side: jobs in, outcomes out; a death costs one job; knows no suite."""

from __future__ import annotations

import json
import selectors
import subprocess
from collections.abc import Hashable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from student_client.processes import process, python

__all__ = ["Outcome", "Workers"]


@dataclass(frozen=True)
class Outcome:
    """How a job ended: `error` is None or a sentence; `again` says whether the same job may go well another time."""

    error: str | None = None
    again: bool = False


class _Worker:
    """One process and the job it has."""

    def __init__(self, log: Path) -> None:
        self._log, self._stack = log, ExitStack()
        self._process: subprocess.Popen[str] | None = None
        self.job: Hashable | None = None

    @property
    def started(self) -> subprocess.Popen[str]:
        """The process, started at first use and after a death."""
        if self._process is None:
            command = python("student_client.compare.worker")
            self._process = self._stack.enter_context(process(command, self._log, subprocess.PIPE, subprocess.PIPE))
        return self._process

    def give(self, name: Hashable, job: Mapping[str, Any]) -> None:
        """Hands it a job."""
        self.job = name
        assert self.started.stdin is not None
        try:
            self.started.stdin.write(json.dumps(job) + "\n")
            self.started.stdin.flush()
        except BrokenPipeError:  # it has died idle; `take` finds that out
            pass

    def take(self) -> Outcome:
        """What came of its job, once its standard output can be read."""
        assert self.started.stdout is not None
        self.job, line = None, self.started.stdout.readline()
        if line:
            return Outcome(**json.loads(line))
        code = self.started.wait()
        self.close()
        return Outcome(f"the worker process ended with code {code}", again=True)

    def ask_to_end(self) -> None:
        """Asks the process to end and does not wait for it."""
        if self._process is not None:
            self._process.terminate()

    def close(self) -> None:
        """Ends the process and forgets its job."""
        self._stack.close()
        self._process = self.job = None


class Workers:
    """Up to `count` jobs at once, each in a process that lives on; use as a context manager.

    Args:
        count: number of processes; each is started when it is needed.
        folder: of their logs.
    """

    def __init__(self, count: int, folder: Path) -> None:
        self._folder = folder
        self._workers = [_Worker(folder / f"worker-{number}.log") for number in range(count)]

    @property
    def count(self) -> int:
        """Number of jobs that can run at once."""
        return len(self._workers)

    @property
    def running(self) -> list[Hashable]:
        """The jobs that run now."""
        return [worker.job for worker in self._workers if worker.job is not None]

    @property
    def pids(self) -> list[int]:
        """Ids of the processes that run a job."""
        return [worker.started.pid for worker in self._workers if worker.job is not None]

    def give(self, name: Hashable, job: Mapping[str, Any]) -> None:
        """Starts a job; there must be an idle worker.

        Args:
            name: what `wait` calls it.
            job: JSON values, see `worker.JOBS`.
        """
        next(worker for worker in self._workers if worker.job is None).give(name, job)

    def wait(self, timeout_s: float) -> list[tuple[Any, Outcome]]:
        """The jobs that have ended, with their outcomes; after `timeout_s` perhaps none."""
        with selectors.DefaultSelector() as selector:
            for worker in self._workers:
                if worker.job is not None:
                    assert worker.started.stdout is not None
                    selector.register(worker.started.stdout, selectors.EVENT_READ, worker)
            ready = [key.data for key, _ in selector.select(timeout_s)]
        return [(worker.job, worker.take()) for worker in ready]

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends all processes, whatever they are at; the next job starts new ones."""
        for worker in self._workers:
            worker.ask_to_end()
        for worker in self._workers:
            worker.close()
