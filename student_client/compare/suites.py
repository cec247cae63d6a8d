"""What is compared, as frozen values: suites of tasks and variants of methods; knows no process and no result."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from task_data.config import DataConfig
from teaching_protocol.errors import ConfigError

__all__ = ["Role", "Settings", "Suite", "SuiteTask", "TeacherPlan", "Variant", "Weights", "dump_suite", "read_suite"]

Settings = Mapping[str, Any]
"""Fields of a run's configuration by dotted name, such as {"training.lr": 1e-3}."""

Role = Literal["foundation", "complementary"]
Weights = Literal["trained", "random"]

_TUNABLE = (
    "training.lr",
    "training.weight_decay",
    "training.schedule",
    "training.warmup_steps",
    "training.max_grad_norm",
    "training.labelled_share",
    "student.dropout",
)
_NAME = r"^\w[\w.~+-]*$"
_MORE_ROWS = ("data.labelled", "data.unlabelled", "data.other_genres")
_FIXED = ("method.names", "method.seed", "method.selection.selector", "teacher.address", "teacher.student")


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class TeacherPlan(_Frozen):
    """How a teacher is made before it is served: either from a `model` or as a `student`."""

    model: str | None = Field(
        default=None, description="What `teacher-server serve --model` takes: a name, or a folder."
    )
    finetune: dict[str, Any] | None = Field(
        default=None,
        description="Settings of `teacher-server finetune`, which gives it a head; None serves it as it is.",
    )
    student: dict[str, Any] | None = Field(
        default=None, description="A student, trained task only on the task's rows: settings laid over the task's."
    )
    server: dict[str, Any] = Field(default_factory=dict, description="Fields of the server's configuration.")

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.model is None) == (self.student is None):
            raise ValueError("either model or student, received both or none")
        if self.student is not None and self.finetune is not None:
            raise ValueError("finetune with model only: a trained student has its head")
        _refuse(self.student or {}, _moves_splits, "other rows to validate and test on than the students have")
        _refuse(self.finetune or {}, _moves_splits, "other rows to validate and test on than the students have")
        return self


class SuiteTask(_Frozen):
    """A data set, the student that learns on it, its training, and the teachers that know it."""

    data: DataConfig = Field(description="The data set; its splits are the same for every method and every seed.")
    settings: dict[str, Any] = Field(
        default_factory=dict, description="Settings of every run; `teacher.*` are the foundation's."
    )
    foundation: TeacherPlan | None = Field(default=None, description="The foundation teacher.")
    complementary: TeacherPlan | None = Field(default=None, description="The complementary teacher.")
    variants: tuple[str, ...] | None = Field(default=None, description="Names of the variants to compare; None is all.")


class Variant(_Frozen):
    """A method with its settings, its teachers, and the few settings that are tried out for it."""

    methods: tuple[str, ...] = Field(min_length=1, description="Method names, composed if several.")
    role: Literal["baseline", "method", "ablation", "control"] = Field(
        default="method", description="What it is there for."
    )
    teachers: tuple[Role, ...] = Field(
        default=("foundation",), description="Whom it asks, in this order; may be empty."
    )
    weights: Weights = Field(
        default="trained", description="Whether its teachers know anything; random is the control."
    )
    settings: dict[str, Any] = Field(default_factory=dict, description="Its settings, laid over all others.")
    grid: tuple[dict[str, Any], ...] | None = Field(
        default=None, description="Its tuning trials; None takes the suite's."
    )
    settings_of: str | None = Field(
        default=None,
        description="Another variant whose chosen trial it takes over untuned, as an ablation of that one does.",
    )
    selector: dict[str, Any] | None = Field(
        default=None, description="Settings of the selector that is trained for it first, in place of tuning trials."
    )
    episodes: int | None = Field(
        default=None, ge=1, description="Episodes of that training; None is as many as the others have trials."
    )
    about: str = Field(default="", description="What it is, in a few words.")

    @model_validator(mode="after")
    def _same_budget(self) -> Self:
        for settings in (self.settings, self.selector or {}, *(self.grid or ())):
            _refuse(settings, _changes_budget, "another budget, student or data set than the other variants have")
        ways = [name for name in ("grid", "settings_of", "selector") if getattr(self, name) is not None]
        if len(ways) > 1:
            raise ValueError(f"one way to a setting, received {', '.join(ways)}")
        return self


class Suite(_Frozen):
    """Tasks and variants; every variant of every task gets the same number of steps and of tuning trials."""

    name: str = Field(pattern=_NAME, description="What it is called.")
    about: str = Field(default="", description="What it is for.")
    grid: tuple[dict[str, Any], ...] = Field(
        default=({},), min_length=1, description="Tuning trials where no other are given."
    )
    tasks: dict[str, SuiteTask] = Field(min_length=1, description="Tasks by name.")
    variants: dict[str, Variant] = Field(min_length=1, description="Variants by name, in the order of the tables.")
    contrasts: tuple[tuple[str, str], ...] = Field(
        default=(),
        description="Pairs of variants to set against each other, the one that is claimed to be better first.",
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        for settings in self.grid:
            _refuse(settings, _changes_budget, "another budget, student or data set than the other variants have")
        for name in (*self.tasks, *self.variants):
            if not re.fullmatch(_NAME, name):
                raise ValueError(f"names that can be folders, of letters, digits and _.~+-, received {name!r}")
        for name, variant in self.variants.items():
            self._check_way(name, variant)
        strangers = {name for pair in self.contrasts for name in pair if name not in self.variants}
        if strangers:
            raise ValueError(f"variants of the suite in contrasts, received {', '.join(sorted(strangers))}")
        for task_name, task in self.tasks.items():
            unknown = [name for name in task.variants or () if name not in self.variants]
            if unknown:
                raise ValueError(f"variants of the suite for the task {task_name}, received {', '.join(unknown)}")
            lost = set(task.variants or ()) - set(self.variants_of(task_name))
            if lost:
                raise ValueError(f"a teacher in the task {task_name} for each role that {', '.join(sorted(lost))} asks")
        return self

    def _check_way(self, name: str, variant: Variant) -> None:
        """Refuses a variant whose way to its setting leads nowhere, or is not as long as that of the others."""
        if variant.settings_of is not None:
            followed = self.variants.get(variant.settings_of)
            if followed is None or followed.settings_of is not None:
                raise ValueError(
                    f"a variant with a setting of its own for settings_of of {name}, received {variant.settings_of!r}"
                )
        elif variant.selector is None:
            if len(self.trials(name)) != len(self.grid):
                raise ValueError(
                    f"{len(self.grid)} tuning trials for {name}, as for all, received {len(self.trials(name))}"
                )
            both = set(variant.settings) & {field for trial in self.trials(name) for field in trial}
            if both:
                raise ValueError(
                    f"{', '.join(sorted(both))} in the settings of {name} or in its trials, received it in both"
                )

    def trials(self, variant: str) -> tuple[Settings, ...]:
        """The tuning trials of a variant: its own, those of the variant it follows, or the suite's."""
        own = self.variants[self.source(variant)].grid
        return self.grid if own is None else own

    def source(self, variant: str) -> str:
        """The variant whose setting a variant takes: its own, or the one it follows."""
        return self.variants[variant].settings_of or variant

    def episodes(self, variant: str) -> int:
        """Episodes of the training of a variant's selector; 0 without one."""
        found = self.variants[variant]
        return 0 if found.selector is None else found.episodes or len(self.grid)

    def variants_of(self, task: str) -> tuple[str, ...]:
        """Names of the variants compared on a task, in the suite's order: those whose teachers it has."""
        wanted, here = self.tasks[task].variants, self.tasks[task]
        return tuple(
            name
            for name, variant in self.variants.items()
            if (wanted is None or name in wanted) and all(getattr(here, role) is not None for role in variant.teachers)
        )

    def narrowed(self, tasks: Sequence[str] = (), trials: int | None = None, steps: int | None = None) -> Suite:
        """The suite with some of its tasks, with fewer tuning trials, or with other numbers of steps.

        Raises:
            ConfigError: an unknown task, or more trials than there are.
        """
        unknown = [name for name in tasks if name not in self.tasks]
        if unknown:
            raise ConfigError(f"--tasks: received {', '.join(unknown)}, expected some of {', '.join(self.tasks)}")
        if trials is not None and not 1 <= trials <= len(self.grid):
            raise ConfigError(f"--trials: received {trials}, expected 1 to {len(self.grid)}")
        kept = {name: _shortened(task, steps) for name, task in self.tasks.items() if not tasks or name in tasks}
        variants = {
            name: variant.model_copy(update={"grid": None if variant.grid is None else variant.grid[:trials]})
            for name, variant in self.variants.items()
        }
        return self.model_copy(update={"tasks": kept, "grid": self.grid[:trials], "variants": variants})


def read_suite(path: Path) -> Suite:
    """Reads a suite from a YAML file.

    Raises:
        ConfigError: a file that cannot be read, an unknown field, or values that do not fit together.
    """
    try:
        return Suite.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"suite {path} cannot be read: {error}") from error
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
        raise ConfigError(f"suite {path}: expected {faults}") from error


def dump_suite(suite: Suite) -> str:
    """The suite as YAML that `read_suite` reads, without what is as it is by default."""
    return yaml.safe_dump(suite.model_dump(mode="json", exclude_defaults=True), sort_keys=False, allow_unicode=True)


def _shortened(task: SuiteTask, steps: int | None) -> SuiteTask:
    if steps is None:
        return task
    every = min(task.settings.get("training.evaluate_every", steps), max(1, steps // 4))
    return task.model_copy(
        update={"settings": {**task.settings, "training.max_steps": steps, "training.evaluate_every": every}}
    )


def _moves_splits(name: str) -> bool:
    return name.startswith("data") and name not in _MORE_ROWS


def _changes_budget(name: str) -> bool:
    return name in _FIXED or not (name.startswith(("method.", "teacher.")) or name in _TUNABLE)


def _refuse(settings: Settings, wrong: Callable[[str], bool], what: str) -> None:
    found = [name for name in settings if wrong(name)]
    if found:
        raise ValueError(f"no {', '.join(found)} here: that would be {what}")
