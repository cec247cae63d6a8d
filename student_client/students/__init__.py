"""New students for a data set; what a student is lies in `student_models`."""

from __future__ import annotations

from student_client.students.build import build_student

__all__ = ["build_student"]
