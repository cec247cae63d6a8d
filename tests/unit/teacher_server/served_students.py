"""Tiny students saved as a training run saves them, and their data as a teacher's input ports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from student_models import Student, load_student
from tests.unit.student_client.student_data import data_of, tiny
from tests.unit.teacher_server.tiny_models import text_bytes

__all__ = ["MODALITIES", "alone", "columns_of", "run_folder", "wire_inputs"]

MODALITIES = ("text", "ratings", "image")


def run_folder(folder: Path, modality: str, **overrides: Any) -> Path:
    """The folder of a run with its config.json and `student/`; the student has 3 layers of even weights."""
    student, _ = tiny(modality, **{"layers": 3} | overrides)
    with torch.no_grad():
        for weight in student.parameters():  # a fresh student's states are small and its biases zero
            weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(7)), alpha=0.1)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text('{"data": {"name": "file"}, "method": {"names": ["task_only"]}}')
    student.save(folder / "student")
    return folder


def alone(folder: Path) -> Student:
    """The saved student by itself, in evaluation mode."""
    return load_student(folder / "student")


def columns_of(modality: str) -> dict[str, Any]:
    """Raw columns of the test split."""
    return dict(data_of(modality).test.columns)


def wire_inputs(columns: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Raw columns as the input ports of a served student."""
    if "text" in columns:
        return {"text": text_bytes(*columns["text"])}
    return {name: column[:, None] if column.dim() == 1 else column for name, column in columns.items()}
