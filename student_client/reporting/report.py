"""What finished runs come to: a table, report.json and learning curves; knows no process and no teacher."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from student_client.reporting.footprint import SIZE_COLUMNS, Footprint, size_rows
from teaching_protocol.errors import DataError

__all__ = ["Run", "plot_curves", "read_run", "size_table", "table", "write_report"]


@dataclass(frozen=True)
class Run:
    """One finished run: what its result.json says, and its validation curve as (step, metric)."""

    name: str
    metric: str
    test: float
    validation: float
    parameters: int
    codec_parameters: int
    steps: int
    teacher_s: float
    wall_s: float
    curve: tuple[tuple[int, float], ...]


def read_run(name: str, folder: Path) -> Run:
    """Reads the folder of a finished run.

    Raises:
        DataError: the run is not finished, or its files cannot be read.
    """
    try:
        result: dict[str, Any] = json.loads((folder / "result.json").read_text())
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    except (OSError, ValueError) as error:
        raise DataError(f"{folder}: no finished run: {error}; train it to its end first") from error
    metric = result["metric"]
    curve = tuple((line["step"], line["validation"][metric]) for line in lines if "validation" in line)
    return Run(
        name,
        metric,
        result["test"],
        result["validation"],
        result["parameters"],
        result["codec_parameters"],
        result["steps"],
        result["teacher_s"],
        result["wall_s"],
        curve,
    )


def table(runs: Sequence[Run], title: str) -> Table:
    """The runs as a table for the terminal, in the order given."""
    found = Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False)
    found.add_column("method", no_wrap=True)
    headers = (f"test\n{runs[0].metric}", "vali-\ndation", "student\nsize", "codec\nsize")
    for header in (*headers, "steps", "teacher\nseconds", "wall\nseconds"):
        found.add_column(header, justify="right", no_wrap=True)
    for run in runs:
        found.add_row(
            run.name,
            f"{run.test:.3f}",
            f"{run.validation:.3f}",
            f"{run.parameters / 1e6:.2f} M",
            f"{run.codec_parameters / 1e6:.2f} M",
            str(run.steps),
            f"{run.teacher_s:.1f}",
            f"{run.wall_s:.0f}",
        )
    return found


def size_table(sizes: Mapping[str, Footprint]) -> Table:
    """Models that were weighed together as a table for the terminal."""
    found = Table(title="size and speed, measured in turns", box=box.SIMPLE_HEAD, pad_edge=False)
    for number, column in enumerate(SIZE_COLUMNS):
        found.add_column(column, justify="right" if number else "left", no_wrap=True)
    for row in size_rows(sizes):
        found.add_row(*row)
    return found


def write_report(runs: Sequence[Run], facts: dict[str, Any], path: Path) -> None:
    """Writes every run and the facts about how they were made."""
    path.write_text(json.dumps({**facts, "runs": [asdict(run) for run in runs]}, indent=2) + "\n")


def plot_curves(runs: Sequence[Run], title: str, path: Path) -> None:
    """Plots the validation metric over optimizer steps, and the test metric of the chosen student as a dashed line."""
    from matplotlib.figure import Figure  # here, so that a trainer without the extra [demo] can import this module

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for number, run in enumerate(runs):
        colour = f"C{number}"
        axes.plot(*zip(*run.curve, strict=True), color=colour, marker=".", label=f"{run.name}: test {run.test:.3f}")
        axes.axhline(run.test, color=colour, linestyle="--", linewidth=0.8, alpha=0.6)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel(f"validation {runs[0].metric} (dashed: test)")
    axes.set_title(title)
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)
