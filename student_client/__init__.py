"""Students that train against a served teacher."""

from __future__ import annotations

from student_client.remote import InProcessTeacher, RemoteTeacher

__all__ = ["InProcessTeacher", "RemoteTeacher"]
