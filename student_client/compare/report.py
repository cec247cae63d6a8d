"""Everything a comparison leaves behind: results.json, results.md, plots, report.html; runs nothing."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from student_client.compare.curves import Curve, mean_curves, read_curves, read_selector
from student_client.compare.html import Section, page
from student_client.compare.plan import TUNING_SEED, TaskRuns
from student_client.compare.plots import Plot, curves_plot, monitors_plot, save_png, scores_plot
from student_client.compare.records import Record, write_results
from student_client.compare.sheets import (
    Sheet,
    as_markdown,
    contrast_sheet,
    narrowed,
    overview_sheet,
    settings_sheet,
    size_sheet,
    task_sheet,
)
from student_client.compare.sizes import read_sizes, sizes_of
from student_client.compare.tables import Contrast, TaskTable, contrasts, task_table
from student_client.compare.teachers import TeacherName, read_scores
from student_client.reporting.footprint import as_values

__all__ = ["machine", "write_report", "write_runs"]

_SCORES, _COSTS = (0, 2, 3, 5, 6), (0, 7, 8, 9, 10, 11)
_WATCHED = {"action": "weight of each kind of knowledge", "importance": "importance of each teacher"}
_DISTRIBUTIONS = ("talking-models", "torch", "transformers", "grpcio", "numpy", "scikit-learn")
_TEACHERS: tuple[TeacherName, ...] = (
    ("foundation", "trained"),
    ("complementary", "trained"),
    ("foundation", "random"),
    ("complementary", "random"),
)
_HOW = (
    "Every variant of a task has the same student, the same rows, the same steps and the same number of tuning trials. "
    f"Trials run with seed {TUNING_SEED}, and the validation rows choose among them, and the best step of every run; the "
    "final runs have seeds 0, 1, ... A variant that takes over the setting chosen for another one is not tuned itself; one with "
    "a selector spends its trials on the episodes in which that is learned. The test rows are scored once a run, at its end, "
    "and decide nothing.",
    "The splits are the same for all seeds, since the teachers learned on the same labelled rows and were chosen on the same "
    "validation rows; no teacher saw a test row. A seed varies initial weights, codecs, the order of the rows and dropout. So "
    "the intervals tell how sure a difference is on these rows, not on others.",
    "Teacher seconds depend on who asked first: a server keeps what does not depend on the student.",
)


def machine() -> dict[str, str]:
    """What the runs were done on and with."""
    versions = []
    for name in _DISTRIBUTIONS:
        try:
            versions.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            versions.append(f"{name} from its source")
    found = f"{platform.platform()}, {_processor()}, {os.cpu_count()} cores"
    return {"machine": found, "python": platform.python_version(), "versions": ", ".join(versions)}


def write_runs(boards: Sequence[TaskRuns], root: Path, command: str) -> None:
    """Writes results.json with every run that has ended so far, without tables."""
    write_results(root / "results.json", _facts(boards, command), _records(boards))


def write_report(boards: Sequence[TaskRuns], root: Path, command: str) -> list[Sheet]:
    """Writes results.json, results.md, plots/*.png and report.html; gives what a terminal has room for."""
    tables = [
        task_table(board, _teacher_scores(root, board), read_sizes(sizes_of(root, board.task))) for board in boards
    ]
    found = [each for board in boards for each in contrasts(board)]
    facts = _facts(boards, command)
    numbers = {"tables": [_numbers(table) for table in tables], "contrasts": [asdict(each) for each in found]}
    write_results(root / "results.json", {**facts, **numbers}, _records(boards))
    sections = _sections(boards, tables, found, root)
    (root / "plots").mkdir(exist_ok=True)
    for plot in (part for _, parts in sections for part in parts if isinstance(part, Plot)):
        save_png(plot, root / "plots")
    title = f"Comparison of methods: {facts['suite']}"
    (root / "report.html").write_text(page(title, command, facts, sections), encoding="utf-8")
    (root / "results.md").write_text(_markdown(title, facts, sections), encoding="utf-8")
    whole = [task_sheet(table) for table in tables]
    shown = [narrowed(sheet, columns, columns is _SCORES) for sheet in whole for columns in (_SCORES, _COSTS)]
    sizes = [size_sheet(table) for table in tables if table.sizes]
    return [*shown, *sizes, *([contrast_sheet(found)] if found else [])]


def _numbers(table: TaskTable) -> dict[str, Any]:
    return asdict(table) | {"sizes": as_values(table.sizes)}


def _facts(boards: Sequence[TaskRuns], command: str) -> dict[str, Any]:
    suite, board = boards[0].suite, boards[0]
    missing = sum(len(each.missing) for each in boards)
    return {
        "suite": suite.name,
        "command": command,
        "seeds": board.seeds,
        "tuning_trials": len(suite.grid) if board.tuned else 0,
        "tuning_seed": TUNING_SEED,
        "runs_ended": sum(1 for each in boards for _ in each.runs()) - missing,
        "runs_missing": missing,
        **machine(),
    }


def _sections(
    boards: Sequence[TaskRuns], tables: Sequence[TaskTable], found: Sequence[Contrast], root: Path
) -> list[Section]:
    sections: list[Section] = [
        ("Over all tasks", [*_HOW, overview_sheet(tables), *([contrast_sheet(found)] if found else [])])
    ]
    for board, table in zip(boards, tables, strict=True):
        sizes = [size_sheet(table)] if table.sizes else []
        sections.append((board.task, [task_sheet(table), *_plots(board, table, root), *sizes, settings_sheet(table)]))
    failed = _failed_sheet(_records(boards))
    sections.append(("Failed runs", [failed] if failed.rows else ["None."]))
    return sections


def _plots(board: TaskRuns, table: TaskTable, root: Path) -> list[Plot]:
    """All plots of a task for which there is anything to show."""
    finals = [(run, record) for run, record in board.ended() if run.stage == "final" and record.error is None]
    if not finals:
        return []
    logs: dict[str, list[dict[str, Curve]]] = {}
    scores: dict[str, list[float]] = {}
    for run, record in finals:
        logs.setdefault(run.variant, []).append(read_curves(root / run.folder))
        scores.setdefault(run.variant, []).append(record.test or 0.0)
    means = {name: mean_curves(runs) for name, runs in logs.items()}
    learned = {name: known.get(f"validation/{table.metric}", ()) for name, known in means.items()}
    main = {row.variant for row in table.rows if row.role in ("baseline", "method")}
    shown = {name: curve for name, curve in learned.items() if curve and name in main}
    return [scores_plot(table, scores), *([curves_plot(table, shown)] if shown else []), *_monitors(board, root, means)]


def _monitors(board: TaskRuns, root: Path, means: Mapping[str, Mapping[str, Curve]]) -> Iterator[Plot]:
    """What selectors chose and whom committees heard: in the final runs, and while a selector was learned."""
    for run, _ in board.ended():
        learned = read_selector(root / run.folder) if run.stage == "select" else {}
        if learned:
            title = f"{board.task}: actions while the selector of {run.variant} was learned"
            yield monitors_plot(f"{board.task}-{run.variant}-selector", title, "phase, over all episodes", learned)
    for variant, curves in means.items():
        for what, said in _WATCHED.items():
            prefix = f"monitors/{what}."
            own = {
                name.removeprefix(prefix): curve for name, curve in curves.items() if name.startswith(prefix) and curve
            }
            if own:
                names = dict(zip(map(str, range(9)), board.suite.variants[variant].teachers, strict=False))
                lines = {names.get(name, name): curve for name, curve in own.items()}
                title = f"{board.task}: {said} in {variant}, mean over seeds"
                yield monitors_plot(f"{board.task}-{variant}-{what}", title, "optimizer step", lines)


def _failed_sheet(records: Sequence[Record]) -> Sheet:
    rows = [
        (f"{each.task}/{each.variant}", each.stage, str(each.seed if each.stage == "final" else each.trial), each.error)
        for each in records
        if each.error is not None
    ]
    return Sheet("Failed runs", ("run", "stage", "seed or trial", "what was said"), tuple(rows), (), True)


def _markdown(title: str, facts: Mapping[str, Any], sections: Sequence[Section]) -> str:
    lines = [f"# {title}", "", *(f"- {name.replace('_', ' ')}: {value}" for name, value in facts.items()), ""]
    for heading, parts in sections:
        lines += [f"## {heading}", ""]
        for part in parts:
            lines += [_in_markdown(part), ""]
    return "\n".join(lines)


def _in_markdown(part: Sheet | Plot | str) -> str:
    if isinstance(part, Sheet):
        return as_markdown(part)
    return f"![{part.title}](plots/{part.name}.png)" if isinstance(part, Plot) else part


def _records(boards: Sequence[TaskRuns]) -> list[Record]:
    return [record for board in boards for _, record in board.ended()]


def _teacher_scores(root: Path, board: TaskRuns) -> dict[str, dict[str, Any]]:
    found = {
        f"{role}-{weights}": read_scores(root / "teachers" / board.task, (role, weights)) for role, weights in _TEACHERS
    }
    return {name: scores for name, scores in found.items() if scores is not None}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
