"""The exit codes of both commands, in one place; ends nothing."""

from __future__ import annotations

from enum import IntEnum
from types import MappingProxyType

__all__ = ["EXIT_MEANINGS", "ExitCode"]


class ExitCode(IntEnum):
    """How a command ended."""

    WELL = 0
    FAILED = 1
    USAGE = 2
    WARNED = 3
    AGAIN = 75
    NEVER = 78
    INTERRUPTED = 130
    TERMINATED = 143


EXIT_MEANINGS = MappingProxyType(
    {
        ExitCode.WELL: "it did what was asked; also a server that was drained",
        ExitCode.FAILED: "it failed, or its configuration is wrong; the standard error says in one line what to do",
        ExitCode.USAGE: "the command line cannot be read (unknown command or flag, a value missing); of a doctor also: nothing "
        "was reached at the address",
        ExitCode.WARNED: "doctors only: nothing failed, but something could be better",
        ExitCode.AGAIN: "student processes of a fleet only: it failed, and may succeed another time (EX_TEMPFAIL)",
        ExitCode.NEVER: "student processes of a fleet only: it would fail again (EX_CONFIG)",
        ExitCode.INTERRUPTED: "ended by Ctrl-C (SIGINT); what was done is kept, and the last line says how to go on",
        ExitCode.TERMINATED: "ended by SIGTERM, the same",
    }
)
"""What each means, for docs/commands.md."""
