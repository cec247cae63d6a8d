"""How far a run is, read from the end of its folder's metrics.jsonl; knows no trainer and no process."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Standing", "read_standing"]

_TAIL_BYTES = 2**16
_METRICS = ("span_f1", "micro_f1", "perplexity", "rmse", "accuracy")


@dataclass(frozen=True)
class Standing:
    """The last logged step and its loss, and the latest validation metric with its name, where there was one."""

    step: int = 0
    loss: float | None = None
    metric: str = ""
    value: float = 0.0

    @property
    def said(self) -> str:
        """The validation metric in words; empty before the first."""
        return f"{self.metric} {self.value:.3f}" if self.metric else ""


def read_standing(folder: Path) -> Standing:
    """Where the run of a folder is; nowhere yet, if it has logged nothing."""
    found = Standing()
    for line in _tail(folder / "metrics.jsonl"):
        try:
            record = json.loads(line)
            step = int(record["step"])
        except (ValueError, KeyError, TypeError):
            continue  # cut off at the front, or just being written
        metric, value = found.metric, found.value
        validation = record.get("validation", {})
        if name := next((name for name in _METRICS if name in validation), ""):
            metric, value = name, validation[name]
        found = Standing(step, record.get("loss"), metric, value)
    return found


def _tail(path: Path) -> list[str]:
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            return file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return []
