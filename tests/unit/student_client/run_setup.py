"""A small text task on disk and configurations of runs on it, for the tests of training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from student_client.config import RunConfig, load_run_config
from student_client.reporting.progress import Progress
from tests.unit.student_client.student_data import texts

__all__ = ["quiet", "run_config", "write_csv"]


def write_csv(folder: Path, rows: int = 200) -> Path:
    """Texts of a few words; the label says whether `good` is among them."""
    path = folder / "mood.csv"
    lines = [f"{text} n{row}" for row, text in enumerate(texts(rows, seed=1))]
    path.write_text("text,label\n" + "".join(f"{line},{'yes' if 'good' in line else 'no'}\n" for line in lines))
    return path


def run_config(folder: Path, output: str = "run", method: str = "task_only", **overrides: Any) -> RunConfig:
    """20 steps of a tiny student; `training__lr=1` overrides training.lr."""
    path = folder / "mood.csv"
    fields = {
        "data.name": "file",
        "data.path": path if path.exists() else write_csv(folder),
        "data.labelled": 60,
        "data.unlabelled": 40,
        "data.validation": 40,
        "data.test": 40,
        "student.size": "tiny",
        "method.names": method,
        "method.message_width": 16,
        "method.message_tokens": 2,
        "training.max_steps": 20,
        "training.batch_size": 8,
        "training.lr": 3e-3,
        "training.warmup_steps": 2,
        "training.evaluate_every": 5,
        "training.checkpoint_every": 7,
        "training.log_every": 4,
        "training.tensorboard": False,
        "training.device": "cpu",
        "output": folder / output,
    }
    return load_run_config(None, fields | {name.replace("__", "."): value for name, value in overrides.items()})


def quiet() -> Progress:
    return Progress("test", quiet=True)
