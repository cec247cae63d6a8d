"""Students as models: cut at their layers, saved and loaded alone; no teacher, no method and no training is known here."""

from __future__ import annotations

from student_models.card import StudentCard
from student_models.image import ImageStudent
from student_models.loading import STUDENTS, load_student
from student_models.ratings import RatingsStudent
from student_models.student import Columns, States, Student, Tensors
from student_models.text import TextStudent

__all__ = [
    "STUDENTS",
    "Columns",
    "ImageStudent",
    "RatingsStudent",
    "States",
    "Student",
    "StudentCard",
    "Tensors",
    "TextStudent",
    "load_student",
]
