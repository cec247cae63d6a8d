"""Which runs a comparison consists of and which is next, decided by validation alone; knows no process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from student_client.compare.records import Key, Planned, Record, lower_is_better
from student_client.compare.suites import Suite, Variant
from student_client.config import RunConfig, load_run_config

__all__ = ["TUNING_SEED", "TaskRuns", "best_trial", "run_config", "settings_of"]

TUNING_SEED = 1000
"""Seed of tuning trials; the final seeds are 0, 1, ..., so it is not among them."""


class TaskRuns:
    """The runs of one task: which may begin, and what came of each.

    Args:
        suite: with the task.
        task: its name.
        shown: the variants to compare.
        seeds: number of final runs of each variant.
        tuned: whether trials choose a setting; without, the first of the grid is taken.
    """

    def __init__(self, suite: Suite, task: str, shown: Sequence[str], seeds: int, tuned: bool = True) -> None:
        self.suite, self.task, self.shown, self.seeds = suite, task, tuple(shown), seeds
        self.tuned = tuned and len(suite.grid) > 1
        self.records: dict[Key, Record] = {}
        self._begun: set[Key] = set()

    def runs(self) -> Iterator[Planned]:
        """All runs in the order they are best done: trials and selectors, then the final runs seed by seed."""
        for name in dict.fromkeys(self.suite.source(shown) for shown in self.shown):
            yield from self._trials(name)
        for seed in range(self.seeds):
            for name in self.shown:
                yield Planned(self.task, name, "final", seed, self.chosen(name), seed)

    def next(self) -> Planned | None:
        """A run that has not begun and waits for nothing; it counts as begun then."""
        for run in self.runs():
            if run.key not in self._begun and run.key not in self.records and run.trial is not None:
                self._begun.add(run.key)
                return run
        return None

    def add(self, run: Planned, record: Record) -> None:
        """Takes what came of a run; final runs whose setting was lost with it have failed, too."""
        self.records[run.key] = record
        if run.stage == "final" or record.error is None or not self._is_lost(run.variant):
            return
        for each in self.runs():
            if each.stage == "final" and self.suite.source(each.variant) == run.variant:
                why = f"no setting: every trial of {run.variant} failed, such as: {record.error}"
                self.records[each.key] = Record.failed(each, settings_of(self.suite, each), why)

    def again(self, run: Planned) -> None:
        """Lets a run that has begun begin once more."""
        self._begun.discard(run.key)

    @property
    def missing(self) -> list[Planned]:
        """Runs without a record."""
        return [run for run in self.runs() if run.key not in self.records]

    def ended(self) -> list[tuple[Planned, Record]]:
        """Runs with a record, and their records."""
        return [(run, self.records[run.key]) for run in self.runs() if run.key in self.records]

    def chosen(self, variant: str) -> int | None:
        """The trial whose setting a variant's final runs take; None while that is not known, or if all have failed."""
        source = self.suite.source(variant)
        trials = list(self._trials(source))
        if not trials:
            return 0
        ended = [self.records.get(each.key) for each in trials]
        known = [record for record in ended if record is not None]
        if len(known) < len(ended):
            return None
        if trials[0].stage == "select":
            return 0 if known[0].error is None else None
        return best_trial(known)

    def _trials(self, name: str) -> Iterator[Planned]:
        """What is run to choose a variant's setting."""
        if self.suite.variants[name].selector is not None:
            yield Planned(self.task, name, "select", 0, 0, TUNING_SEED)
        elif self.tuned:
            for trial in range(len(self.suite.trials(name))):
                yield Planned(self.task, name, "tune", trial, trial, TUNING_SEED)

    def _is_lost(self, source: str) -> bool:
        ended = [self.records.get(each.key) for each in self._trials(source)]
        return all(record is not None and record.error is not None for record in ended)


def best_trial(trials: Sequence[Record]) -> int | None:
    """Number of the trial with the best validation metric, the first of equals; None if all have failed."""
    ended = [trial for trial in trials if trial.error is None and trial.validation is not None]
    if not ended:
        return None
    sign = 1 if lower_is_better(ended[0].metric) else -1
    return min(ended, key=lambda trial: (sign * (trial.validation or 0.0), trial.trial)).trial


def settings_of(suite: Suite, run: Planned) -> dict[str, Any]:
    """What a run sets beyond its task: its trial, over that its variant's own settings, and a selector's."""
    variant = suite.variants[run.variant]
    selector = variant.selector if run.stage == "select" else None
    return {**suite.trials(run.variant)[run.trial or 0], **variant.settings, **(selector or {})}


def run_config(suite: Suite, run: Planned, addresses: Sequence[str], root: Path) -> RunConfig:
    """The configuration of a run whose trial is known.

    Args:
        suite: with its task and variant.
        run: one of its runs.
        addresses: `host:port` of the teachers its variant asks, in its order.
        root: folder of the comparison.

    Raises:
        ConfigError: an unknown field, or a value out of range.
    """
    task, source = suite.tasks[run.task], suite.source(run.variant)
    common = {name: value for name, value in task.settings.items() if _applies(name, suite.variants[run.variant])}
    settings = {"training.tensorboard": False, "training.threads": 1, **common, **settings_of(suite, run)}
    first = {name: value for name, value in settings.items() if name.startswith("teacher.")}
    values = {"data": task.data.model_dump(mode="json"), **{k: v for k, v in settings.items() if k not in first}}
    values |= {"method.names": suite.variants[run.variant].methods, "output": root / run.folder}
    values |= dict.fromkeys(("student.seed", "method.seed", "training.seed"), run.seed)
    if addresses:
        values |= {"teacher.address": addresses[0], **first}
        values["complementary"] = [{"address": address} for address in addresses[1:]]
    if run.stage == "final" and suite.variants[source].selector is not None:
        values["method.selection.selector"] = root / Planned(run.task, source, "select", 0, 0, TUNING_SEED).folder
    return load_run_config(None, values)


def _applies(name: str, variant: Variant) -> bool:
    """Whether a task's setting concerns a variant: those of a teacher speak of the foundation and its layers."""
    return not name.startswith("teacher.") or variant.teachers[:1] == ("foundation",)
