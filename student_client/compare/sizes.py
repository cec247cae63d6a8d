"""How large and how fast the students and teachers of a task are: one job of a worker, and what it left; judges nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from student_client.compare.plan import TaskRuns, run_config
from student_client.config import StudentConfig
from student_client.reporting.footprint import Footprint

__all__ = ["read_sizes", "sizes_of", "student_configs", "weigh_models"]

_NOBODY = "127.0.0.1:1"


def student_configs(board: TaskRuns) -> dict[str, Any]:
    """The students of a task by name: one, `student`, where all variants have the same."""
    found: dict[str, list[str]] = {}
    for variant in board.shown:
        run = next((run for run in board.runs() if run.variant == variant and run.stage == "final"), None)
        if run is not None:
            config = run_config(board.suite, replace(run, trial=0), [_NOBODY] * 2, Path())
            found.setdefault(config.student.model_dump_json(exclude={"seed"}), []).append(variant)
    if len(found) == 1:
        return {"student": json.loads(next(iter(found)))}
    return {f"student of {', '.join(names)}": json.loads(values) for values, names in found.items()}


def weigh_models(
    students: Mapping[str, Any], addresses: Mapping[str, str], data: Mapping[str, Any], output: str
) -> None:
    """Weighs new students, which are as large and fast as trained ones, and served teachers in turns; writes what came of it.

    Raises:
        DataError: data that cannot be had.
        TeachingError: a teacher that cannot be reached.
    """
    from student_client.reporting.weighing import weigh_at
    from student_client.students import build_student
    from task_data import load_data
    from task_data.config import DataConfig

    rows = load_data(DataConfig.model_validate(data))
    built = {name: build_student(StudentConfig.model_validate(each), rows) for name, each in students.items()}
    sizes = weigh_at(built, addresses, rows.validation)
    Path(output).write_text(json.dumps({name: vars(found) for name, found in sizes.items()}, indent=1) + "\n")


def sizes_of(root: Path, task: str) -> Path:
    """Where a comparison under `root` keeps what was measured of a task."""
    return root / "teachers" / task / "sizes.json"


def read_sizes(path: Path) -> dict[str, Footprint]:
    """What `weigh_models` wrote; nothing where it did not."""
    try:
        return {name: Footprint(**values) for name, values in json.loads(path.read_text()).items()}
    except (OSError, ValueError, TypeError):
        return {}
