"""Plots of a comparison: scores with intervals, learning curves, selector's actions, committee's importance."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from student_client.compare.curves import Curve
from student_client.compare.statistics import mean_interval
from student_client.compare.tables import TaskTable

__all__ = ["Plot", "curves_plot", "monitors_plot", "save_png", "scores_plot", "svg"]

_INK = "#010203"  # stands for the page's own text colour
_COLOURS = {"baseline": "#7a8793", "method": "#d1495b", "ablation": "#3d7ea6", "control": "#b08b2e"}


@dataclass(frozen=True)
class Plot:
    """A figure that is drawn when it is saved: its file's name, its title, and what it draws into."""

    name: str
    title: str
    draw: Any
    rows: int = 8
    """Its height in lines of text."""


def scores_plot(table: TaskTable, scores: Mapping[str, Sequence[float]]) -> Plot:
    """Every seed's test score as a dot, the mean with its bootstrap interval; the teachers as dashed lines.

    Args:
        table: of the task.
        scores: test scores of the final runs by variant.
    """
    shown = [row for row in table.rows if scores.get(row.variant)]

    def draw(axes: Any) -> None:
        for place, row in enumerate(reversed(shown)):
            values, colour = scores[row.variant], _COLOURS[row.role]
            low, high = mean_interval(values) or (values[0], values[0])
            mean = sum(values) / len(values)
            axes.plot([low, high], [place, place], color=colour, linewidth=3, alpha=0.5, solid_capstyle="round")
            axes.plot(values, [place] * len(values), ".", color=colour, markersize=4)
            axes.plot([mean], [place], "o", color=colour, markersize=7)
        scored = {name: known["test"] for name, known in table.teachers.items() if known.get("test") is not None}
        for number, (name, score) in enumerate(scored.items()):
            axes.axvline(score, color=f"C{number}", linestyle="--", linewidth=1.0, label=name)
        if scored:
            axes.legend(
                title="teachers",
                fontsize=7,
                title_fontsize=7,
                loc="center left",
                bbox_to_anchor=(1.0, 0.5),
                frameon=False,
            )
        axes.set_yticks(range(len(shown)), [row.variant for row in reversed(shown)])
        axes.set_ylim(-0.6, len(shown) - 0.4)
        axes.set_xlabel(f"test {table.metric}: seeds, mean, 95% bootstrap interval of the mean")

    return Plot(f"{table.task}-scores", f"{table.task}: test {table.metric}", draw, 3 + len(shown))


def curves_plot(table: TaskTable, curves: Mapping[str, Curve]) -> Plot:
    """Validation metric over steps, mean over seeds, of every variant given."""

    def draw(axes: Any) -> None:
        roles = {row.variant: row.role for row in table.rows}
        for number, (name, curve) in enumerate(curves.items()):
            line = ":" if roles.get(name) == "baseline" else "-"
            axes.plot(*zip(*curve, strict=True), line, color=f"C{number % 10}", marker=".", markersize=4, label=name)
        axes.set_xlabel("optimizer step")
        axes.locator_params(axis="x", integer=True)
        axes.set_ylabel(f"validation {table.metric}, mean over seeds")
        axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)

    return Plot(f"{table.task}-curves", f"{table.task}: learning curves", draw, max(14, 2 + len(curves)))


def monitors_plot(name: str, title: str, axis: str, curves: Mapping[str, Curve]) -> Plot:
    """Lines over time by name, such as a selector's actions or the importance of a committee's teachers.

    Args:
        name: of the plot's file.
        title: of the plot.
        axis: what time is counted in.
        curves: the lines.
    """

    def draw(axes: Any) -> None:
        for label, curve in curves.items():
            axes.plot(*zip(*curve, strict=True), marker=".", markersize=3, label=label)
        axes.set_xlabel(axis)
        axes.locator_params(axis="x", integer=True)
        axes.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))

    return Plot(name, title, draw, 12)


def save_png(plot: Plot, folder: Path) -> Path:
    """Writes a plot on white."""
    path = folder / f"{plot.name}.png"
    _figure(plot, "black").savefig(path, dpi=150, facecolor="white")
    return path


def svg(plot: Plot) -> str:
    """A plot as an SVG element for a page: no background, in the page's own text colour, the same bytes every time."""
    from matplotlib import rc_context

    file = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": plot.name, "font.family": "sans-serif"}):
        _figure(plot, _INK).savefig(file, format="svg", transparent=True, metadata={"Date": None})
    text = file.getvalue().replace(_INK, "currentColor")
    return text[text.index("<svg") :]


def _figure(plot: Plot, ink: str) -> Any:
    from matplotlib import rc_context  # here: not installed with a trainer without the extra [demo]
    from matplotlib.figure import Figure

    names: Any = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "grid.color")
    with rc_context(dict.fromkeys(names, ink)):
        figure = Figure(figsize=(7.2, 0.6 + 0.24 * plot.rows), layout="constrained")
        axes = figure.subplots()
        plot.draw(axes)
        axes.set_title(plot.title, fontsize=10)
        axes.grid(alpha=0.25)
    return figure
