"""What a shell offers while a value is typed: callbacks for typer's `autocompletion`; knows no command."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

from pydantic import BaseModel

from command_config.fields import fields_of

__all__ = ["complete_fields", "complete_listed", "complete_names"]

Completion = Callable[[str], Iterable[str] | Iterable[tuple[str, str]]]
"""From what is typed so far to what it may become, with a sentence on each where there is one."""


def complete_names(names: Collection[str]) -> Completion:
    """One of several names; where none fits, the shell offers files."""

    def complete(incomplete: str) -> list[str]:
        return [name for name in names if name.startswith(incomplete)]

    return complete


def complete_listed(names: Collection[str]) -> Completion:
    """Names with commas between: the last one is completed, those before are not offered again."""

    def complete(incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",")
        given = before.split(",")
        return [f"{before}{comma}{name}" for name in names if name.startswith(last) and name not in given]

    return complete


def complete_fields(model: type[BaseModel]) -> Completion:
    """`FIELD=` of a flag `--set`, with the field's sentence; what comes after the `=` is left to the user."""

    def complete(incomplete: str) -> list[tuple[str, str]]:
        if "=" in incomplete:
            return []
        known = fields_of(model).items()
        return [(f"{name}=", info.description or "") for name, info in known if name.startswith(incomplete)]

    return complete
