"""What the lines of both commands share: examples in the help, errors in one line, exit codes; knows no command."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from rich.markup import escape

from command_config.exits import ExitCode
from teaching_protocol.errors import TeachingError

__all__ = ["Example", "Json", "add_commands", "run_line"]

Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON object and nothing else; what is said meanwhile is on stderr.")
]
"""The flag of every command that a program may read."""


@dataclass(frozen=True)
class Example:
    """A whole command line as a user types it, and what it does."""

    line: str
    about: str


def add_commands(
    app: typer.Typer, commands: Mapping[str, Callable[..., Any]], examples: Mapping[str, Sequence[Example]]
) -> None:
    """Adds commands by their names, each with its examples at the end of its help."""
    for name, command in commands.items():
        app.command(name, epilog=_epilog(examples[name]))(command)


def run_line(name: str, app: Callable[[], Any]) -> None:
    """Runs a command line; an error of the teaching tree is one line on the standard error and exit code 1."""
    try:
        app()
    except TeachingError as error:
        said = "; ".join([str(error), *getattr(error, "__notes__", [])])
        typer.secho(f"{name}: {' '.join(said.split())}", fg="red", err=True)
        sys.exit(ExitCode.FAILED)


def _epilog(examples: Sequence[Example]) -> str:
    """One paragraph each: lines are kept as they are, and are read by the tests as a user would copy them."""
    shown = "\n\n".join(f"# {escape(each.about)}\n{escape(each.line)}" for each in examples)
    return f"Examples:\n\n{shown}"
