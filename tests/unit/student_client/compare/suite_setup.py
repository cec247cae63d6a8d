"""A small suite and records of runs that are made up, for the tests of what is decided and reported from them."""

from __future__ import annotations

from typing import Any

from student_client.compare.plan import TaskRuns, settings_of
from student_client.compare.records import Planned, Record
from student_client.compare.suites import Suite, SuiteTask, TeacherPlan, Variant
from task_data.config import DataConfig

__all__ = ["ended", "fill", "finals", "suite"]


def suite(**changes: Any) -> Suite:
    """Two tasks, three learning rates; two baselines, a method, its ablation and its control."""
    digits = DataConfig.model_validate(
        {"name": "digits", "labelled": 50, "unlabelled": 50, "validation": 50, "test": 50}
    )
    films = digits.model_copy(update={"name": "movielens"})
    teacher = TeacherPlan(student={"training.max_steps": 5})
    values = {
        "name": "made_up",
        "grid": tuple({"training.lr": rate} for rate in (1e-3, 3e-3, 1e-2)),
        "tasks": {
            "digits": SuiteTask(data=digits, settings={"training.max_steps": 8}, foundation=teacher),
            "films": SuiteTask(data=films, settings={"training.max_steps": 8}, foundation=teacher),
        },
        "variants": {
            "task_only": Variant(methods=("task_only",), role="baseline", teachers=()),
            "one_way": Variant(methods=("one_way",), role="baseline"),
            "talking": Variant(methods=("talking",), settings={"method.message_width": 16}),
            "talking_no_mc": Variant(
                methods=("talking",),
                role="ablation",
                settings={"method.w_message_consistency": 0.0},
                settings_of="talking",
            ),
            "talking~random": Variant(methods=("talking",), role="control", weights="random", settings_of="talking"),
        },
    }
    return Suite.model_validate(values | changes)


def ended(run: Planned, validation: float, test: float, metric: str = "accuracy", **costs: Any) -> Record:
    """The record of a run that ended with these scores."""
    known = {"task": run.task, "variant": run.variant, "stage": run.stage, "trial": run.trial, "seed": run.seed}
    return Record(**known, metric=metric, validation=validation, test=test, **costs)  # type: ignore[arg-type]


def fill(board: TaskRuns, scores: dict[str, tuple[float, float]], metric: str = "accuracy") -> None:
    """Ends all runs of a board: (validation, test) by variant; a seed adds a hundredth to both."""
    while (run := board.next()) is not None:
        validation, test = scores[run.variant]
        step = run.number / 100
        settings = settings_of(board.suite, run)
        board.add(run, ended(run, validation + step, test + step, metric, settings=settings))


def finals(*values: float, task: str = "digits", variant: str = "talking", metric: str = "accuracy") -> list[Record]:
    """Final runs with these scores, on validation and test alike, by seed."""
    runs = [Planned(task, variant, "final", seed, 0, seed) for seed in range(len(values))]
    return [ended(run, value, value, metric) for run, value in zip(runs, values, strict=True)]
