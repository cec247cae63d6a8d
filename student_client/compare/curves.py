"""What runs logged on their way, as means over seeds; knows no plot and no table."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

__all__ = ["Curve", "mean_curves", "read_curves", "read_selector"]

Curve = tuple[tuple[int, float], ...]
"""(step, value) in the order of the steps."""


def read_curves(folder: Path) -> dict[str, Curve]:
    """Everything a run logged as a number over its steps: `validation/accuracy`, `monitors/importance.0`, ...

    A run that logged nothing, or has no log, gives none.
    """
    path = folder / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    found: dict[str, list[tuple[int, float]]] = {}
    for line in lines:
        record = json.loads(line)
        for group in ("validation", "monitors", "parts"):
            for name, value in record.get(group, {}).items():
                found.setdefault(f"{group}/{name}", []).append((record["step"], float(value)))
    return {name: tuple(points) for name, points in found.items()}


def read_selector(folder: Path) -> dict[str, Curve]:
    """A selector's actions while it was learned: the weight of each kind of knowledge over the phases of all episodes."""
    try:
        kinds = json.loads((folder / "config.json").read_text(encoding="utf-8"))["method"]["selection"]["kinds"]
        lines = (folder / "selector.jsonl").read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError, KeyError):
        return {}
    actions = [json.loads(line)["action"] for line in lines]
    return {
        kind: tuple((phase, action[place]) for phase, action in enumerate(actions, 1))
        for place, kind in enumerate(kinds)
    }


def mean_curves(runs: Sequence[Mapping[str, Curve]]) -> dict[str, Curve]:
    """The mean over runs at every step that all runs with that curve have."""
    found = {}
    for name in dict.fromkeys(name for run in runs for name in run):
        curves = [dict(run[name]) for run in runs if name in run]
        steps = sorted(set.intersection(*(set(curve) for curve in curves)))
        found[name] = tuple((step, statistics.fmean(curve[step] for curve in curves)) for step in steps)
    return found
