"""Students that train against a served teacher.

A name is imported when it is first asked for, so that the command line can be read without loading torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from student_client.config import load_run_config
    from student_client.loops.collating import TeacherColumns, student_inputs
    from student_client.loops.distillation import Distillation, distillation_config
    from student_client.loops.hugging_face import DistillationTrainer
    from student_client.teachers.remote import InProcessTeacher, RemoteTeacher

__all__ = [
    "Distillation",
    "DistillationTrainer",
    "InProcessTeacher",
    "RemoteTeacher",
    "TeacherColumns",
    "distillation_config",
    "load_run_config",
    "student_inputs",
]

_HOMES = {
    "Distillation": "student_client.loops.distillation",
    "DistillationTrainer": "student_client.loops.hugging_face",
    "InProcessTeacher": "student_client.teachers.remote",
    "RemoteTeacher": "student_client.teachers.remote",
    "TeacherColumns": "student_client.loops.collating",
    "distillation_config": "student_client.loops.distillation",
    "load_run_config": "student_client.config",
    "student_inputs": "student_client.loops.collating",
}

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        found = getattr(import_module(_HOMES[name]), name)
        globals()[name] = found
        return found
