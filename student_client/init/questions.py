"""Questions with a default, a check and a flag each; without a terminal the defaults answer; knows no configuration."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import typer

from command_config import hint
from teaching_protocol.errors import ConfigError, TeachingError

__all__ = ["NONE", "Asker", "between", "number", "one_of"]

T = TypeVar("T")

NONE = "none"
"""The answer that there is none."""


class Asker:
    """Asks on the terminal what no flag has answered.

    Args:
        takes_defaults: ask nothing.
    """

    def __init__(self, takes_defaults: bool) -> None:
        self._takes_defaults = takes_defaults

    def ask(self, question: str, flag: str, given: str | None, default: str, check: Callable[[str], T]) -> T:
        """The answer, as `check` gives it: the flag's, the terminal's, or the default.

        An answer on the terminal that `check` refuses is asked for again, with what was wrong.

        Raises:
            TeachingError: as of `check`, of a flag or a default.
            ConfigError: there is nobody to answer.
        """
        if given is not None or self._takes_defaults:
            return check(default if given is None else given)
        try:
            found: T = typer.prompt(
                f"{question} ({flag})", default=default, value_proc=lambda text: _checked(check, text), err=True
            )
        except typer.Abort as error:
            if isinstance(error.__context__, KeyboardInterrupt):
                raise
            typer.echo(err=True)  # the question's line is not at its end
            raise ConfigError(
                f"{flag}: nobody answers, the input has ended; give {flag}, or --yes for the default of every question"
            ) from error
        return found


def one_of(flag: str, known: tuple[str, ...]) -> Callable[[str], str]:
    """Checks that an answer is one of those known."""

    def check(text: str) -> str:
        if text not in known:
            raise ConfigError(f"{flag}: received {text!r}, expected one of {', '.join(known)}{hint(text, known)}")
        return text

    return check


def between(flag: str, least: int, most: int) -> Callable[[str], int]:
    """Checks that an answer is a whole number in a range, both ends included."""

    def check(text: str) -> int:
        if not text.isdecimal() or not least <= int(text) <= most:
            raise ConfigError(f"{flag}: received {text!r}, expected a whole number from {least} to {most}")
        return int(text)

    return check


def number(text: str) -> int:
    """Checks that an answer is a whole number from 1 on."""
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"received {text!r}, expected a whole number from 1 on")
    return int(text)


def _checked(check: Callable[[str], T], text: str) -> T:
    try:
        return check(text.strip())
    except TeachingError as error:
        raise typer.BadParameter(str(error)) from error
