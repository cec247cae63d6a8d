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


_SIDES = {"teacher-server": "server", "student-client": "client"}
_EXTRAS = {"matplotlib": "demo", "ray": "ray", "peft": "finetune", "onnx": "onnx", "lightning": "lightning"}
"""Which extra brings what a command imports: its side's, and that of what only some of its flags need."""

_FULL = "No space left on device"
_NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory")

_OURS = {"command_config", "teaching_protocol", "task_data", "student_models", "teacher_server", "student_client"}


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
    """Runs a command line; what a user can mend is one line on the standard error and exit code 1.

    That is an error of the teaching tree, a file or folder that the system refuses, a full disk, a package that is not
    installed, and a lack of memory. Anything else is a bug, and keeps its stack.
    """
    try:
        app()
    except Exception as error:
        said = _mendable(name, error)
        if not said:
            raise
        typer.secho(f"{name}: {' '.join(said.split())}", fg="red", err=True)
        sys.exit(ExitCode.FAILED)


def _mendable(name: str, error: Exception) -> str:
    """What happened and what to do, in one sentence; empty of a bug. Libraries are told by what they say, as none is imported here."""
    text = str(error)
    if isinstance(error, TeachingError):
        return "; ".join([text, *getattr(error, "__notes__", [])])
    if _FULL in text:
        return f"{getattr(error, 'filename', None) or 'the disk'}: {_FULL}; make room there, or give another place"
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}; give a place that can be read and written"
    if isinstance(error, MemoryError) or any(sign in text for sign in _NO_MEMORY):
        why = text.partition("\n")[0][:200] or "of the machine"
        return f"not enough memory ({why}); take fewer rows a step, a smaller model, or a device with more room"
    package = (getattr(error, "name", None) or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    if package and package not in _OURS:
        extra = _EXTRAS.get(package, _SIDES.get(name, "client"))
        return f"the package {package} is not installed; install it with: pip install 'talking-models[{extra}]'"
    return ""


def _epilog(examples: Sequence[Example]) -> str:
    """One paragraph each: lines are kept as they are, and are read by the tests as a user would copy them."""
    shown = "\n\n".join(f"# {escape(each.about)}\n{escape(each.line)}" for each in examples)
    return f"Examples:\n\n{shown}"
