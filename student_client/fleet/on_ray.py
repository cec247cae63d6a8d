"""Students of a fleet on a Ray cluster: each is the same process as on one machine, on the node where Ray places it; trains nothing.

Every node sees the folder of the runs. A student whose node is lost goes on from its checkpoint on another one.
"""

from __future__ import annotations

import subprocess
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from command_config.ray_cluster import RayCluster
from student_client.fleet.plan import Planned
from student_client.fleet.seats import Seat
from student_client.fleet.starting import LOG, command_of
from student_client.processes import start

__all__ = ["RayStudents"]

_LOST = -9
_ANSWER_S = 5.0


class StudentActor:
    """Runs one student's process on its node, and passes on what it is told; ends with it."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def run(self, command: list[str], log: str, threads: int) -> int:
        """The exit code of the process, which ends by itself if this actor does."""
        self._process = start(command, Path(log), stdin=subprocess.PIPE, threads=threads, apart=True)
        code = self._process.wait()
        assert self._process.stdin is not None
        self._process.stdin.close()
        return code

    def end(self, *, at_once: bool) -> None:
        """Asks it to end after its step, or kills it."""
        if self._process is not None:
            (self._process.kill if at_once else self._process.terminate)()


class RayStudents:
    """Starts students on a cluster.

    Args:
        cluster: where.
        gpus: that Ray keeps for each student.
    """

    def __init__(self, cluster: RayCluster, gpus: float = 0.0) -> None:
        self._ray, self._gpus = cluster.ray, gpus

    def launch(self, planned: Planned, seat: Seat, resume: bool) -> _Running:
        """Starts a student; it begins when the cluster has room for it."""
        assert planned.config is not None
        folder = planned.folder.resolve()  # another node has another working folder
        config = planned.config.model_copy(update={"output": folder})
        command, threads = command_of(replace(planned, folder=folder, config=config), seat, resume)
        options = {"num_cpus": threads, "num_gpus": self._gpus, "max_restarts": 0, "max_concurrency": 2}
        handle = self._ray.remote(StudentActor).options(**options).remote()
        return _Running(self._ray, handle, handle.run.remote(command, str(folder / LOG), threads))


class _Running:
    """A student's process elsewhere, with what the supervisor asks of one."""

    def __init__(self, ray: Any, handle: Any, code: Any) -> None:
        self.pid, self.stdin = None, None
        self._ray, self._handle, self._code = ray, handle, code
        self._ended: int | None = None

    def poll(self) -> int | None:
        """Its exit code; None while it runs or waits for room; that of a kill if its node is lost."""
        if self._ended is None and self._ray.wait([self._code], timeout=0)[0]:
            try:
                self._ended = int(self._ray.get(self._code))
            except self._ray.exceptions.RayError:
                self._ended = _LOST
            self._ray.kill(self._handle)
        return self._ended

    def terminate(self) -> None:
        """Asks it to end after its step."""
        self._handle.end.remote(at_once=False)

    def kill(self) -> None:
        """Kills it."""
        if self._ended is None:
            with suppress(self._ray.exceptions.RayError):
                self._ray.get(self._handle.end.remote(at_once=True), timeout=_ANSWER_S)
            self._ray.kill(self._handle)  # one that waits for room has no process yet

    def wait(self) -> int:
        """Its exit code, once it has ended."""
        while (code := self.poll()) is None:
            time.sleep(0.05)
        return code
