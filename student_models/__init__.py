"""Students as models: cut at their layers, saved and loaded alone; no teacher, no method and no training is known here."""

from __future__ import annotations

from student_models.card import StudentCard
from student_models.image import ImageStudent
from student_models.loading import STUDENTS, load_student
from student_models.ratings import RatingsStudent
from student_models.student import Columns, LayeredStudent, States, Student, Tensors, Trace
from student_models.tapped import TappedStudent
from student_models.taps import Tap
from student_models.text import TextStudent

__all__ = [
    "STUDENTS",
    "Columns",
    "ImageStudent",
    "LayeredStudent",
    "RatingsStudent",
    "States",
    "Student",
    "StudentCard",
    "Tap",
    "TappedStudent",
    "Tensors",
    "TextStudent",
    "Trace",
    "load_student",
]
