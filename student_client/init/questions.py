"""Questions with a default, a check and a flag each; without a terminal the defaults answer; knows no configuration."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import typer

from teaching_protocol.errors import ConfigError, TeachingError

__all__ = ["Asker"]

T = TypeVar("T")


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


def _checked(check: Callable[[str], T], text: str) -> T:
    try:
        return check(text.strip())
    except TeachingError as error:
        raise typer.BadParameter(str(error)) from error
