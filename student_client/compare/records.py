"""One run of a comparison and what came of it, on disk and in results.json; knows no suite and no process."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from student_client.reporting.result import Result
from teaching_protocol.errors import ConfigError

__all__ = [
    "SELECTED",
    "Key",
    "Planned",
    "Record",
    "Stage",
    "agree",
    "lower_is_better",
    "read_record",
    "record_of",
    "write_plan",
    "write_results",
]

Stage = Literal["select", "tune", "final"]
Key = tuple[str, str, Stage, int]

SELECTED = "selected.json"
"""File that says that a selector is done: its `steps` over all episodes, and its `wall_s`."""

_PLAN = "plan.json"


@dataclass(frozen=True)
class Planned:
    """One run: number `number` of the stage of a variant of a task, a trial in `tune` and a seed in `final`.

    `trial` is the trial of the variant's grid that it runs, or None where that is yet to be chosen.
    """

    task: str
    variant: str
    stage: Stage
    number: int
    trial: int | None
    seed: int

    @property
    def key(self) -> Key:
        """What tells it from the others."""
        return self.task, self.variant, self.stage, self.number

    @property
    def folder(self) -> Path:
        """Its folder under the comparison's."""
        return Path("runs", self.task, self.variant, f"{self.stage}-{self.number}")


@dataclass(frozen=True)
class Record:
    """What came of a run; `error` says why it has no scores. `settings` are those it differs in from its task's."""

    task: str
    variant: str
    stage: Stage
    trial: int | None
    seed: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    error: str | None = None
    metric: str = ""
    validation: float | None = None
    test: float | None = None
    test_macro_f1: float | None = None
    steps: int = 0
    best_step: int = 0
    parameters: int = 0
    codec_parameters: int = 0
    wall_s: float = 0.0
    teacher_s: float = 0.0
    teacher_rows: int = 0
    teacher_rows_saved: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0

    @classmethod
    def ended(cls, run: Planned, settings: Mapping[str, Any], result: Result) -> Record:
        """The record of a run that ended with a result."""
        known = {name: value for name, value in asdict(result).items() if name in cls.__dataclass_fields__}
        return cls(**known | _names(run), settings=dict(settings))

    @classmethod
    def failed(cls, run: Planned, settings: Mapping[str, Any], error: str) -> Record:
        """The record of a run that could not be done."""
        return cls(**_names(run), settings=dict(settings), error=error)


def lower_is_better(metric: str) -> bool:
    """Whether less of a metric is better."""
    return metric in ("rmse", "perplexity")


def write_plan(folder: Path, plan: Mapping[str, Any]) -> None:
    """Writes to a run's folder what it is to do, before it does it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _PLAN).write_text(json.dumps(plan, indent=2) + "\n", encoding="utf-8")


def read_record(folder: Path, run: Planned, settings: Mapping[str, Any], plan: Mapping[str, Any]) -> Record | None:
    """The record of a run that ended earlier; None if it has not, or did something else than is planned now."""
    try:
        then = json.loads((folder / _PLAN).read_text(encoding="utf-8"))
        found = record_of(folder, run, settings)
    except (OSError, ValueError, ConfigError):
        return None
    return found if agree(then, json.loads(json.dumps(plan))) else None


def record_of(folder: Path, run: Planned, settings: Mapping[str, Any]) -> Record:
    """The record of a run that has ended in its folder.

    Raises:
        OSError, ValueError, ConfigError: it has not.
    """
    if run.stage == "select":
        selected = json.loads((folder / SELECTED).read_text(encoding="utf-8"))
        return Record(**_names(run), settings=dict(settings), **selected)
    return Record.ended(run, settings, Result.read(folder))


def write_results(path: Path, facts: Mapping[str, Any], records: Sequence[Record]) -> None:
    """Writes results.json as a whole or not at all."""
    text = json.dumps({**facts, "runs": [asdict(record) for record in records]}, indent=1)
    draft = path.with_name(f".{path.name}")
    draft.write_text(text + "\n", encoding="utf-8")
    draft.replace(path)


def _names(run: Planned) -> dict[str, Any]:
    return {"task": run.task, "variant": run.variant, "stage": run.stage, "trial": run.trial, "seed": run.seed}


def agree(then: Any, now: Any) -> bool:
    """Whether two plans are the same.

    A field that only one of them has, because settings were added to the product since, is not compared.
    """
    if isinstance(then, dict) and isinstance(now, dict):
        return all(agree(then[name], now[name]) for name in then.keys() & now.keys())
    return bool(then == now)
