"""Students that train against a served teacher.

A name is imported when it is first asked for, so that the command line can be read without loading torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from student_client.teachers.remote import InProcessTeacher, RemoteTeacher

__all__ = ["InProcessTeacher", "RemoteTeacher"]

_HOMES = {"InProcessTeacher": "student_client.teachers.remote", "RemoteTeacher": "student_client.teachers.remote"}

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        found = getattr(import_module(_HOMES[name]), name)
        globals()[name] = found
        return found
