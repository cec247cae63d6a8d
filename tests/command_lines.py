"""Both commands as trees of typer commands, and the examples that their help really shows; runs nothing."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import typer
from typer.testing import CliRunner

from student_client.cli import build_app
from teacher_server.cli import app

__all__ = ["COMMANDS", "PROGRAMS", "Shown", "help_of", "shown_examples"]

PROGRAMS = {"teacher-server": app, "student-client": build_app()}


@dataclass(frozen=True)
class Shown:
    """A command by its words, such as ("teacher-server", "token", "add")."""

    words: tuple[str, ...]
    command: Any

    def __str__(self) -> str:
        return " ".join(self.words)


def _walk(words: tuple[str, ...], command: Any) -> Iterator[Shown]:
    inner = getattr(command, "commands", None)
    if inner is None:
        yield Shown(words, command)
        return
    for name, each in inner.items():
        yield from _walk((*words, name), each)


COMMANDS = [each for name, found in PROGRAMS.items() for each in _walk((name,), typer.main.get_command(found))]


def help_of(shown: Shown) -> str:
    """The help of a command, as a wide terminal shows it."""
    program, *path = shown.words
    done = CliRunner().invoke(PROGRAMS[program], [*path, "--help"], env={"COLUMNS": "300"})
    assert done.exit_code == 0, done.output
    return done.output


def shown_examples(shown: Shown) -> list[list[str]]:
    """The words of every example in the help of a command, as a wide terminal shows it."""
    after = help_of(shown).partition("Examples:")[2]
    lines = re.findall(r"^ *((?:teacher-server|student-client) .*?)\s*$", after, re.MULTILINE)
    return [shlex.split(line) for line in lines]
