"""The command `student-client`, also as `python -m student_client`: malloc is set before anything else is imported."""

from __future__ import annotations

import signal
import sys

from teaching_protocol.memory import keep_freed_memory

__all__ = ["main"]


def main() -> None:
    """Runs the command."""
    keep_freed_memory()
    try:
        from student_client import cli  # here: what it imports starts threads, each with an arena of its own

        cli.main()
    except KeyboardInterrupt:  # while it is imported; what runs later sees to it itself
        sys.exit(128 + signal.SIGINT)


if __name__ == "__main__":
    main()
