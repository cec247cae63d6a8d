"""The command `student-client`, also as `python -m student_client`: malloc is set before anything else is imported."""

from __future__ import annotations

from teaching_protocol.memory import keep_freed_memory

__all__ = ["main"]


def main() -> None:
    """Runs the command."""
    keep_freed_memory()
    from student_client import cli  # here: what it imports starts threads, each with an arena of its own

    cli.main()


if __name__ == "__main__":
    main()
