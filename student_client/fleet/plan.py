"""The students of a fleet as configurations of runs, and what there is of each on disk; starts nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from command_config import Layers
from student_client.config import ENVIRONMENT, RunConfig, load_run_config
from student_client.fleet.settings import FleetConfig
from student_client.reporting.result import Result
from student_client.training.checkpoints import checkpoint_folders
from teaching_protocol.errors import ConfigError

__all__ = ["Planned", "Start", "last_checkpoint", "plan", "start_of"]

Start = Literal["new", "resume", "finished"]


@dataclass(frozen=True)
class Planned:
    """A student: its place in the fleet, its folder, and its run's configuration or why there is none."""

    number: int
    name: str
    folder: Path
    config: RunConfig | None = None
    error: str = ""


def plan(fleet: FleetConfig, environ: Mapping[str, str]) -> list[Planned]:
    """Every student of a fleet, in the order of the file; one whose settings no run can have brings the reason with it.

    Defaults, the common settings, the environment, the grid's or the student's own: each is laid over those before.

    Raises:
        ConfigError: two students of one name, or a variable that is no field's.
    """
    Layers().environment(RunConfig, ENVIRONMENT, environ)  # said once, not once a student
    found = [_planned(number, *student, fleet, environ) for number, student in enumerate(_students(fleet))]
    names = [each.name for each in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"students: received {', '.join(twice)} more than once, expected a name of its own for each")
    return found


def start_of(planned: Planned) -> Start:
    """How a student begins, by what is in its folder.

    Raises:
        ConfigError: it has no configuration, or the folder holds another run.
    """
    config, folder = planned.config, planned.folder
    if config is None:
        raise ConfigError(planned.error)
    if (folder / "config.json").exists():
        known = load_run_config(folder / "config.json", {}).identity()
        if known != config.identity():
            differs = sorted(name for name, value in _flat(config.identity()) if dict(_flat(known)).get(name) != value)
            raise ConfigError(
                f"{folder} holds a run of other settings ({', '.join(differs[:3])}); give the student another name, the fleet "
                "another output, or remove that folder"
            )
        if (folder / "result.json").exists():
            Result.read(folder)
            return "finished"
        return "resume" if last_checkpoint(folder) else "new"
    return "new"


def last_checkpoint(folder: Path) -> int:
    """The step of the newest checkpoint of a run; 0 if there is none."""
    found = checkpoint_folders(folder / "checkpoints")
    return int(found[-1].name.rpartition("-")[2]) if found else 0


def _students(fleet: FleetConfig) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Name and own settings."""
    for student in fleet.students:
        yield student.name, student.settings
    if fleet.grid is not None:
        for name, settings in (fleet.grid.settings or {"": {}}).items():
            for seed in fleet.grid.seeds:
                full = f"{name}-seed{seed}".lstrip("-")
                seeds = dict.fromkeys(("student.seed", "method.seed", "training.seed"), seed)
                yield full, {**seeds, **settings}


def _planned(
    number: int, name: str, settings: Mapping[str, Any], fleet: FleetConfig, environ: Mapping[str, str]
) -> Planned:
    folder = fleet.root / name
    try:
        if "output" in {**fleet.common, **settings}:
            raise ConfigError("output: received one in a student's settings, expected the fleet's own field `output`")
        layers = Layers().mapping(fleet.common, "common settings").environment(RunConfig, ENVIRONMENT, environ)
        layers.mapping(settings, f"settings of {name}").dotted({"output": folder}, "fleet")
        return Planned(number, name, folder, layers.validate(RunConfig).config)
    except ConfigError as error:
        return Planned(number, name, folder, error=str(error))


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
