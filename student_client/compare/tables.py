"""What the final runs of a comparison come to, as numbers; knows no rendering and no process."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from student_client.compare.plan import TaskRuns, settings_of
from student_client.compare.records import Record, lower_is_better
from student_client.compare.statistics import Difference, Summary, gap_recovered, paired_gain, summarise
from student_client.reporting.footprint import Footprint

__all__ = ["Contrast", "Costs", "Row", "TaskTable", "best_baseline", "contrasts", "task_table"]

Scores = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Costs:
    """Means over the final runs of a variant: rows that teachers were asked about and spared, their seconds, bytes
    on the wire both ways, and the run's own seconds."""

    teacher_rows: float
    teacher_rows_saved: float
    teacher_s: float
    wire_bytes: float
    wall_s: float

    @property
    def saved_share(self) -> float:
        """Part of the rows that were not sent."""
        whole = self.teacher_rows + self.teacher_rows_saved
        return self.teacher_rows_saved / whole if whole else 0.0


@dataclass(frozen=True)
class Row:
    """A variant on a task over its seeds: scores, gain over the best baseline, gap recovered, costs.

    `failed` final runs are not in any mean. `setting` is the chosen one, out of `trials`, or comes with a selector of
    `episodes`; `settings_of` names the variant that it was chosen for, if that is another one.
    """

    variant: str
    role: str
    about: str
    failed: int
    validation: Summary | None
    test: Summary | None
    gain: Difference | None
    gap: float | None
    costs: Costs | None
    setting: Mapping[str, Any]
    trials: int
    episodes: int
    settings_of: str | None


@dataclass(frozen=True)
class TaskTable:
    """All variants of a task. `baseline` is the best baseline by validation; `teachers` what teachers score themselves.

    `sizes` are parameters, bytes and rows a second of its student and teachers, measured in turns on this machine; none where
    that was not done.
    """

    task: str
    metric: str
    lower_is_better: bool
    baseline: str | None
    rows: tuple[Row, ...]
    teachers: Scores
    sizes: Mapping[str, Footprint] = field(default_factory=dict)


@dataclass(frozen=True)
class Contrast:
    """Two variants on a task against each other, paired by seed: above zero the first is better."""

    task: str
    better: str
    than: str
    gain: Difference | None


def task_table(board: TaskRuns, teachers: Scores, sizes: Mapping[str, Footprint] | None = None) -> TaskTable:
    """What the final runs of a task come to.

    Args:
        board: its runs, ended or not.
        teachers: scores by teacher name, such as `foundation-trained`, as `teachers.read_scores` gives them.
        sizes: of its models, by name.
    """
    ended = {name: _finals(board, name) for name in board.shown}
    metric = next((record.metric for finals in ended.values() for record in finals), "")
    baseline = best_baseline({name: ended[name] for name in board.shown if _is_baseline(board, name)})
    rows = (_row(board, name, ended, baseline, teachers) for name in board.shown)
    return TaskTable(board.task, metric, lower_is_better(metric), baseline, tuple(rows), teachers, dict(sizes or {}))


def best_baseline(finals: Mapping[str, Sequence[Record]]) -> str | None:
    """The baseline with the best mean validation metric among those with the most seeds; the first of equals."""
    most = max((len(records) for records in finals.values()), default=0)
    means = {name: _mean(records, "validation") for name, records in finals.items() if records and len(records) == most}
    if not means:
        return None
    metric = next(records[0].metric for records in finals.values() if records)
    sign = 1 if lower_is_better(metric) else -1
    return min(means, key=lambda name: sign * means[name])


def contrasts(board: TaskRuns) -> Iterator[Contrast]:
    """The suite's contrasts on a task, and every variant that takes another's setting against that one."""
    variants = board.suite.variants
    followers = ((found.settings_of, name) for name, found in variants.items() if found.settings_of is not None)
    for better, than in dict.fromkeys((*board.suite.contrasts, *followers)):
        if better in board.shown and than in board.shown:
            first, second = (_by_seed(_finals(board, name), "test") for name in (better, than))
            metric = next((record.metric for record in _finals(board, better)), "")
            yield Contrast(board.task, better, than, paired_gain(first, second, lower_is_better(metric)))


def _row(
    board: TaskRuns, name: str, ended: Mapping[str, Sequence[Record]], baseline: str | None, teachers: Scores
) -> Row:
    variant, finals = board.suite.variants[name], ended[name]
    runs = [run for run in board.runs() if run.variant == name and run.stage == "final"]
    records = [board.records[run.key] for run in runs if run.key in board.records]
    metric = next((record.metric for record in finals), "")
    gain = None
    if baseline not in (None, name):
        against = _by_seed(ended[baseline or ""], "test")
        gain = paired_gain(_by_seed(finals, "test"), against, lower_is_better(metric))
    return Row(
        variant=name,
        role=variant.role,
        about=variant.about,
        failed=sum(record.error is not None for record in records),
        validation=summarise(list(_by_seed(finals, "validation").values())),
        test=summarise(list(_by_seed(finals, "test").values())),
        gain=gain,
        gap=_gap(board, name, ended, teachers),
        costs=_costs(finals) if finals else None,
        setting=settings_of(board.suite, runs[0]) if runs and runs[0].trial is not None else {},
        trials=len(board.suite.trials(name)) if board.tuned and variant.selector is None else 0,
        episodes=board.suite.episodes(name),
        settings_of=variant.settings_of,
    )


def _gap(board: TaskRuns, name: str, ended: Mapping[str, Sequence[Record]], teachers: Scores) -> float | None:
    """Against the first teacher the variant asks, over the seeds that the plain student has, too."""
    variants = board.suite.variants
    plain = next((each for each in board.shown if variants[each].methods == ("task_only",)), None)
    asked = variants[name].teachers
    teacher = teachers.get(f"{asked[0]}-trained", {}).get("test") if asked else None
    if plain is None or teacher is None:
        return None
    own, bare = _by_seed(ended[name], "test"), _by_seed(ended[plain], "test")
    seeds = own.keys() & bare.keys()
    if not seeds:
        return None
    distilled, undistilled = (statistics.fmean(values[seed] for seed in seeds) for values in (own, bare))
    return gap_recovered(distilled, undistilled, float(teacher), lower_is_better(ended[name][0].metric))


def _finals(board: TaskRuns, name: str) -> list[Record]:
    """The final runs of a variant that have a score, by seed."""
    found = (board.records.get((board.task, name, "final", seed)) for seed in range(board.seeds))
    return [record for record in found if record is not None and record.error is None]


def _is_baseline(board: TaskRuns, name: str) -> bool:
    return board.suite.variants[name].role == "baseline"


def _by_seed(records: Sequence[Record], score: str) -> dict[int, float]:
    return {record.seed: getattr(record, score) for record in records if getattr(record, score) is not None}


def _mean(records: Sequence[Record], score: str) -> float:
    return statistics.fmean(_by_seed(records, score).values())


def _costs(records: Sequence[Record]) -> Costs:
    def mean(*fields: str) -> float:
        return statistics.fmean(sum(float(getattr(record, name)) for name in fields) for record in records)

    return Costs(
        mean("teacher_rows"),
        mean("teacher_rows_saved"),
        mean("teacher_s"),
        mean("bytes_sent", "bytes_received"),
        mean("wall_s"),
    )
