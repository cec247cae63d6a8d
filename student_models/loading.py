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

__all__ = ["STUDENTS", "has_own_head", "load_student"]

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
    if not (folder / "student.json").is_file() and has_own_head(folder):
        return TappedStudent.from_pretrained(folder).eval()
    card = StudentCard.read(folder)
    with torch.random.fork_rng(devices=[]):
        return STUDENTS[card.modality].load(folder, card).eval()


def has_own_head(folder: Path) -> bool:
    """Whether a folder holds a transformers model with a head that students have, and nothing of ours beside it."""
    try:
        names = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("architectures") or [""]
    except (OSError, ValueError):
        return False
    return level_of(str(names[0])) is not None
