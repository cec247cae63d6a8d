"""Where a run stands between two steps, and the best student it has found so far, in its folder; knows no step."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import SafetensorError

from student_client.files import replace_folder
from student_client.teachers.recovery import Losses
from student_client.teachers.teachers import Account
from teaching_protocol.errors import ConfigError

__all__ = ["Position", "place_best"]


@dataclass
class Position:
    """Where a run stands between two steps; all of it travels with the checkpoint.

    `waited` validations have passed since the best one, which was `best` after step `best_step`.
    """

    step: int = 0
    seconds: float = 0.0
    account: Account = field(default_factory=Account)
    best: float | None = None
    best_step: int = 0
    waited: int = 0
    losses: Losses = field(default_factory=Losses)


def place_best(output: Path, write: Callable[[Path], object]) -> None:
    """Puts the best student, which `write` writes to a folder, in its place in a run's.

    Raises:
        ConfigError: it cannot be written; the one before it is whole.
    """
    draft = output / ".student"
    try:
        shutil.rmtree(draft, ignore_errors=True)
        write(draft)
        replace_folder(draft, output / "student")
    except (OSError, SafetensorError) as error:
        shutil.rmtree(draft, ignore_errors=True)
        reason = error.args[0][0][-1] if isinstance(error, shutil.Error) else error
        raise ConfigError(
            f"the student cannot be written to {output}: {reason}; free space, then go on with --resume"
        ) from error
