"""Builds and loads students without touching the global random state; knows no method."""

from __future__ import annotations

from pathlib import Path

import torch

from student_client.config import StudentConfig
from student_client.data.splits import TaskData
from student_client.students.card import StudentCard
from student_client.students.image import ImageStudent
from student_client.students.ratings import RatingsStudent
from student_client.students.student import Student
from student_client.students.text import TextStudent
from teaching_protocol.errors import ConfigError, DataError

__all__ = ["STUDENTS", "build_student", "load_student"]

STUDENTS: dict[str, type[TextStudent] | type[RatingsStudent] | type[ImageStudent]] = {
    "text": TextStudent,
    "ratings": RatingsStudent,
    "image": ImageStudent,
}
"""The students by modality."""


def build_student(config: StudentConfig, data: TaskData) -> Student:
    """A new student for a data set, in training mode; its initial weights follow from `config.seed` alone.

    Raises:
        ConfigError: sizes that do not fit together, or a modality without a student.
        DataError: the training split is empty or lacks the student's columns.
    """
    if data.modality not in STUDENTS:
        raise ConfigError(
            f"modality: received {data.modality!r}, but students exist for {', '.join(STUDENTS)}; use one of them"
        )
    if len(data.train) == 0:
        raise DataError("the training split has no rows, a student needs one at least; give more data")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)  # torch.manual_seed would seed the accelerators too
        return STUDENTS[data.modality].build(config, data)


def load_student(folder: Path) -> Student:
    """The student that `Student.save` wrote to `folder`, in evaluation mode.

    Raises:
        ModelLoadError: a file is missing or broken.
    """
    folder = Path(folder)
    card = StudentCard.read(folder)
    with torch.random.fork_rng(devices=[]):
        return STUDENTS[card.modality].load(folder, card).eval()
