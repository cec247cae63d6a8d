"""The command `teacher-server`, also as `python -m teacher_server`: malloc is set before anything else is imported."""

from __future__ import annotations

import signal
import sys

from teaching_protocol.memory import keep_freed_memory

__all__ = ["main"]


def main() -> None:
    """Runs the command."""
    keep_freed_memory()
    try:
        from teacher_server import cli  # here: what it imports starts threads, each with an arena of its own

        cli.main()
    except KeyboardInterrupt:  # while it is imported; what runs later sees to it itself
        sys.exit(128 + signal.SIGINT)


if __name__ == "__main__":
    main()
