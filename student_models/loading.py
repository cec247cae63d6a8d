"""Finds and loads the student a folder holds, without touching the global random state."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from student_models.auto_models import level_of
from student_models.card import StudentCard
from student_models.image import ImageStudent
from student_models.ratings import RatingsStudent
from student_models.student import Student
from student_models.tapped import TappedStudent
from student_models.text import TextStudent

__all__ = ["STUDENTS", "load_student"]

STUDENTS: dict[str, type[TextStudent] | type[RatingsStudent] | type[ImageStudent]] = {
    "text": TextStudent,
    "ratings": RatingsStudent,
    "image": ImageStudent,
}
"""The students by modality."""


def load_student(folder: Path) -> Student:
    """The student that `Student.save` wrote to `folder`, in evaluation mode.

    Raises:
        ModelLoadError: a file is missing or broken.
    """
    folder = Path(folder)
    if not (folder / "student.json").is_file() and _has_head(folder / "config.json"):
        return TappedStudent.from_pretrained(folder).eval()
    card = StudentCard.read(folder)
    with torch.random.fork_rng(devices=[]):
        return STUDENTS[card.modality].load(folder, card).eval()


def _has_head(path: Path) -> bool:
    """Whether a transformers config is that of a model with a head that students have."""
    try:
        names = json.loads(path.read_text(encoding="utf-8")).get("architectures") or [""]
    except (OSError, ValueError):
        return False
    return level_of(str(names[0])) is not None
