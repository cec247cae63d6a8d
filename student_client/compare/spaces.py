"""What a search for settings may choose from, read from a file and checked against the comparison's rules; draws nothing itself."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from student_client.compare.suites import Suite
from teaching_protocol.errors import ConfigError

__all__ = ["Choices", "Range", "Space", "read_space", "with_chosen"]


class Range(BaseModel):
    """Numbers from `low` to `high`."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    low: float = Field(description="The least.")
    high: float = Field(description="The most.")
    log: bool = Field(False, description="Whether each factor is as likely as any other, as for learning rates.")

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        if not self.low < self.high or (self.log and self.low <= 0):
            raise ValueError(f"low < high, and above 0 with log, received {self.low} and {self.high}")
        return self


class Choices(BaseModel):
    """Some values, each as likely as any other."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    choices: tuple[Any, ...] = Field(min_length=1, description="The values.")


Space = Mapping[str, Range | Choices]
"""By dotted field, what it may be."""


def read_space(path: Path) -> Space:
    """Reads a YAML file such as `training.lr: {low: 1.0e-4, high: 1.0e-2, log: true}`.

    Raises:
        ConfigError: it cannot be read, or holds something else.
    """
    try:
        found: dict[str, Range | Choices] = TypeAdapter(dict[str, Range | Choices]).validate_python(
            yaml.safe_load(path.read_text(encoding="utf-8"))
        )
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"space {path} cannot be read: {error}") from error
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
        raise ConfigError(
            f"space {path}: expected fields with {{low, high, log}} or {{choices}} each ({faults})"
        ) from error
    if not found:
        raise ConfigError(f"space {path}: received no field, expected at least one")
    return found


def with_chosen(suite: Suite, task: str, variant: str, settings: Mapping[str, Any]) -> Suite:
    """A suite of one task and one variant whose only trial are these settings.

    Raises:
        ConfigError: the suite has no such task or variant, or a comparison may not change one of the settings.
    """
    if task not in suite.tasks or variant not in suite.variants_of(task):
        raise ConfigError(
            f"--task, --variant: received {task} and {variant}, expected a task of {', '.join(suite.tasks)} and a variant of it"
        )
    known = suite.variants[variant]
    fields = {name: getattr(known, name) for name in ("methods", "role", "teachers", "weights", "about")}
    own = {name: value for name, value in known.settings.items() if name not in settings}
    chosen = {**fields, "settings": own, "grid": (dict(settings),)}
    here = suite.tasks[task].model_dump() | {"variants": (variant,)}
    try:
        return Suite.model_validate(
            {"name": f"{suite.name}-chosen", "grid": ({},), "tasks": {task: here}, "variants": {variant: chosen}}
        )
    except ValidationError as error:
        faults = "; ".join(each["msg"] for each in error.errors())
        raise ConfigError(f"space: expected settings that a comparison may tune ({faults})") from error
