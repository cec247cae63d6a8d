"""What came of a run, as result.json of its folder holds it; knows no trainer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from student_client.files import replace_file
from student_client.reporting.footprint import Footprint
from teaching_protocol.errors import ConfigError

__all__ = ["Result"]


@dataclass(frozen=True)
class Result:
    """Scores of the best student, and what they cost.

    `validation` chose the best student, after step `best_step`; `test` was scored once, at the end. `parameters` are
    the student's alone; `codec_parameters` those it trained with and has left behind. `teacher_rows` are the rows teachers
    were asked about, `teacher_rows_saved` those a method chose not to send. A lost teacher was waited for `recoveries` times,
    the session moved as planned `moves` times (0 in results of before), both took `paused_s` seconds in all, and
    `replayed_steps` steps were made again. `student_size` and `teacher_size` are measured by
    `student-client train` at its end, on the same rows of the validation split, each on its own device.
    """

    method: str
    metric: str
    validation: float
    test: float
    test_loss: float
    test_macro_f1: float | None
    best_step: int
    parameters: int
    codec_parameters: int
    steps: int
    epochs: int
    wall_s: float
    teacher_s: float
    teacher_rows: int
    teacher_rows_saved: int
    bytes_sent: int
    bytes_received: int
    device: str
    seed: int
    recoveries: int = 0
    replayed_steps: int = 0
    paused_s: float = 0.0
    moves: int = 0
    test_subset_accuracy: float | None = None
    student_size: Footprint = field(default_factory=Footprint)
    teacher_size: Footprint = field(default_factory=Footprint)

    def write(self, folder: Path) -> None:
        """Writes result.json to a run's folder, whole or not at all.

        Raises:
            ConfigError: it cannot be written.
        """
        try:
            replace_file(folder / "result.json", json.dumps(asdict(self), indent=2) + "\n")
        except OSError as error:
            raise ConfigError(
                f"{folder / 'result.json'} cannot be written: {error}; free space, then go on with --resume"
            ) from error

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Result:
        """The result whose fields, as JSON has them, are these."""
        sizes = {name: Footprint(**values[name]) for name in ("student_size", "teacher_size") if name in values}
        return cls(**{**values, **sizes})

    @classmethod
    def read(cls, folder: Path) -> Result:
        """Reads result.json of a run's folder.

        Raises:
            ConfigError: the run has not ended, or the file is none of ours.
        """
        path = folder / "result.json"
        try:
            return cls.of(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise ConfigError(f"{path} holds no result: {error}; let the run end first") from error
