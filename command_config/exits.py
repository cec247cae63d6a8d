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
        ExitCode.WELL: "it did what was asked; a server that was drained ends so, too",
        ExitCode.FAILED: "it failed, or was configured wrongly; the standard error says in one line what to do",
        ExitCode.USAGE: "the command line cannot be read (unknown command or flag, a value missing); of a doctor also: nothing "
        "was reached at the address",
        ExitCode.WARNED: "doctors alone: nothing failed, something could be better",
        ExitCode.AGAIN: "a fleet's own student processes alone: it failed, and may go well another time (EX_TEMPFAIL)",
        ExitCode.NEVER: "a fleet's own student processes alone: it would fail again (EX_CONFIG)",
        ExitCode.INTERRUPTED: "ended by Ctrl-C (SIGINT), what was done is kept; the last line says how to go on",
        ExitCode.TERMINATED: "ended by SIGTERM, the same",
    }
)
"""What each means, for docs/commands.md."""
