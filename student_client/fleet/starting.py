"""How a student's process is started: its configuration on disk, its command, its log; waits for nobody."""

from __future__ import annotations

import subprocess
from datetime import UTC, datetime
from typing import Any, Protocol

from student_client.files import replace_file
from student_client.fleet.plan import Planned
from student_client.fleet.seats import Seat
from student_client.processes import python, start

__all__ = ["LOG", "Launch", "Running", "command_of", "launch", "threads_of"]

LOG = "student.log"


class Running(Protocol):
    """A student's process, on this machine or elsewhere; as of `subprocess.Popen`."""

    @property
    def pid(self) -> int | None:
        """Its id, where it is on this machine."""
        ...

    @property
    def stdin(self) -> Any:
        """The end of its standard input that is to be closed, if any."""
        ...

    def poll(self) -> int | None:
        """Its exit code; None while it runs."""
        ...

    def terminate(self) -> None:
        """Asks it to end after its step."""
        ...

    def kill(self) -> None:
        """Kills it."""
        ...

    def wait(self) -> int:
        """Its exit code, once it has ended."""
        ...


class Launch(Protocol):
    """Starts a student on a seat, anew or from its newest checkpoint."""

    def __call__(self, planned: Planned, seat: Seat, resume: bool) -> Running:
        """Gives its process."""
        ...


def threads_of(planned: Planned, seat: Seat) -> int:
    """A student's own number of threads, where it has one; else its seat's."""
    assert planned.config is not None
    return planned.config.training.threads or seat.threads


def command_of(planned: Planned, seat: Seat, resume: bool) -> tuple[list[str], int]:
    """The command of a student's process and its threads; its configuration, whole, lies beside its log then."""
    assert planned.config is not None
    threads, folder = threads_of(planned, seat), planned.folder
    training = planned.config.training.model_copy(update={"threads": threads})
    config = planned.config.model_copy(update={"training": training})
    replace_file(folder / "student.json", config.model_dump_json(indent=2) + "\n")
    with (folder / LOG).open("a", encoding="utf-8") as file:
        how = "goes on" if resume else "begins"
        file.write(
            f"--- {datetime.now(UTC):%Y-%m-%d %H:%M:%S} {planned.name} {how}: cores {seat.cores}, {threads} threads\n"
        )
    path = (folder / "student.json").resolve()  # another machine has another working folder
    return python("student_client.fleet.child", path, *(["--resume"] if resume else [])), threads


def launch(planned: Planned, seat: Seat, resume: bool) -> Running:
    """Starts the process of a student on this machine, on its seat's cores."""
    command, threads = command_of(planned, seat, resume)
    return start(command, planned.folder / LOG, stdin=subprocess.PIPE, threads=threads, cores=seat.cores, apart=True)
