"""The settings of a fleet as one frozen value read from its file; knows no process and no student's settings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from command_config import Layers, read_mapping

__all__ = ["FleetConfig", "FleetStudent", "Grid", "read_fleet"]

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
"""Of a fleet or a student: it names folders, and objects elsewhere."""

Fields = dict[str, Any]
"""Fields of a run's configuration: in sections, or dotted (`training.lr`), or both."""


class FleetStudent(BaseModel):
    """One student, by what it has that the others have not."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: Name = Field(description="Its name, and that of its folder.")
    settings: Fields = Field(default_factory=dict, description="Its own fields, laid over the common ones.")


class Grid(BaseModel):
    """Students by every seed under every setting: `NAME-seed0`, or `seed0` where no settings are named."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (0,), min_length=1, description="Seeds of student, codecs and order, as `--seed` sets them."
    )
    settings: dict[Name, Fields] = Field(
        default_factory=dict, description="By name, the fields that make the difference."
    )


class FleetConfig(BaseModel):
    """A fleet, whole."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: Name = Field(description="What the fleet is called.")
    output: Path | None = Field(
        None, description="Folder of all its runs, each under its student's name; None is runs/fleet/NAME."
    )
    common: Fields = Field(default_factory=dict, description="What all students have: a configuration of `train`.")
    students: tuple[FleetStudent, ...] = Field((), description="Students one by one.")
    grid: Grid | None = Field(None, description="Further students, by seeds and settings.")
    at_once: int = Field(0, ge=0, description="Most students that train at the same time; 0 is one for each core.")
    free_cores: int = Field(
        0, ge=0, description="Cores that no student runs on: for a teacher on this machine, or for yourself."
    )
    threads: int = Field(
        0, ge=0, description="Compute threads of a student whose own settings name none; 0 is as many as it has cores."
    )
    pin: bool = Field(True, description="Whether each student keeps to cores of its own, where there are enough.")
    restarts: int = Field(
        5,
        ge=0,
        description="How often in a row, with no new checkpoint between, a student that crashed is started again.",
    )
    first_pause_s: float = Field(
        1.0, gt=0, description="Seconds before the first of them; each further waits twice as long."
    )
    longest_pause_s: float = Field(60.0, gt=0, description="Seconds before any of them at most; each is jittered.")
    grace_s: float = Field(
        120.0, gt=0, description="Seconds that students have to finish their step when the fleet is told to end."
    )

    @property
    def root(self) -> Path:
        """Folder of all runs."""
        return self.output or Path("runs", "fleet", self.name)

    @model_validator(mode="after")
    def _has_students(self) -> Self:
        if not self.students and self.grid is None:
            raise ValueError("students and grid: received neither, expected at least one student")
        return self


def read_fleet(path: Path, overrides: Mapping[str, Any]) -> FleetConfig:
    """Reads a fleet's YAML or TOML file and lays the flags that were given over it.

    Raises:
        ConfigError: it cannot be read, or holds what no fleet can be.
    """
    layers = Layers().dotted(read_mapping(path), f"file {path}")
    given = {name: value for name, value in overrides.items() if value is not None}
    return layers.dotted(given, "flag").validate(FleetConfig).config
