"""Students: models cut at one layer that learn by talking; they know no teacher and no method."""

from __future__ import annotations

from student_client.students.build import build_student, load_student
from student_client.students.image import ImageStudent
from student_client.students.ratings import RatingsStudent
from student_client.students.student import States, Student, Tensors
from student_client.students.text import TextStudent

__all__ = [
    "ImageStudent",
    "RatingsStudent",
    "States",
    "Student",
    "Tensors",
    "TextStudent",
    "build_student",
    "load_student",
]
