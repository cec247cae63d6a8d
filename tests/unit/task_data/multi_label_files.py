"""A table of texts that each have any number of three labels, in every form a file may have them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

__all__ = ["CLASSES", "FORMS", "SMALL", "sample", "write_form"]

CLASSES = ("angry", "calm", "sad")
SMALL = {"labelled": 60, "unlabelled": 40, "validation": 30, "test": 30}
WORDS = {"angry": "shouts", "calm": "sleeps", "sad": "weeps"}

FORMS = {
    "lists.jsonl": {"label_column": "moods"},
    "lists.parquet": {"label_column": "moods"},
    "cells.csv": {"label_column": "moods", "label_separator": ";"},
    "columns.csv": {"label_columns": CLASSES},
}
"""Files by name, and the settings that read them."""


def sample(rows: int = 200) -> list[tuple[str, list[str]]]:
    """Texts that say by their words which labels they have; an eighth of them has none, and an eighth all."""
    found = []
    for row in range(rows):
        names = [name for bit, name in enumerate(CLASSES) if row >> bit & 1]
        found.append((" ".join(["she", *(WORDS[name] for name in names), f"n{row}"]), names))
    return found


def write_form(path: Path, rows: Sequence[tuple[str, list[str]]]) -> Path:
    """The rows in the form that the file's name says."""
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps({"text": text, "moods": names}) + "\n" for text, names in rows))
    elif path.suffix == ".parquet":
        pd.DataFrame({"text": [text for text, _ in rows], "moods": [names for _, names in rows]}).to_parquet(path)
    elif path.name == "cells.csv":
        frame = pd.DataFrame({"text": [text for text, _ in rows], "moods": ["; ".join(names) for _, names in rows]})
        frame.to_csv(path, index=False)
    else:
        columns = {name: [int(name in names) for _, names in rows] for name in CLASSES}
        pd.DataFrame({"text": [text for text, _ in rows]} | columns).to_csv(path, index=False)
    return path
