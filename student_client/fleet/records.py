"""What became of each student, as fleet.json says it, written whole or not at all; knows no process."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from student_client.files import replace_file
from teaching_protocol.errors import ConfigError

__all__ = ["Record", "State", "write_records"]

State = Literal["waiting", "running", "pausing", "finished", "failed", "interrupted"]


@dataclass
class Record:
    """One student.

    Attributes:
        name: of the student.
        folder: of its run.
        state: where it is; `pausing` is before it is started again, `failed` is given up.
        steps: all the steps it is to make; 0 where its number of epochs decides.
        attempts: how often this fleet has started it.
        crashes: how often in a row it crashed without a new checkpoint.
        error: why it failed, or crashed last.
        seat: the seat it has or had, its cores and threads.
        pid: of its process while it runs.
        metric: of its test, once it has finished.
        test: that metric's value.
    """

    name: str
    folder: str
    state: State = "waiting"
    steps: int = 0
    attempts: int = 0
    crashes: int = 0
    error: str = ""
    seat: int | None = None
    cores: tuple[int, ...] = ()
    threads: int = 0
    pid: int | None = None
    metric: str = ""
    test: float | None = None


def write_records(path: Path, name: str, records: Sequence[Record]) -> None:
    """Writes fleet.json.

    Raises:
        ConfigError: it cannot be written.
    """
    try:
        replace_file(path, json.dumps({"name": name, "students": [asdict(each) for each in records]}, indent=2) + "\n")
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error}; free space, then run the same command again") from error
