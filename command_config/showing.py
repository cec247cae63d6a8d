"""A configuration as a table or JSON, each value with its source, secrets masked; knows no command."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined
from rich.table import Table

from command_config.environment import environment_name
from command_config.fields import fields_of
from command_config.layers import Effective
from command_config.masks import masked

__all__ = ["FieldRow", "as_json", "as_table", "field_rows"]


@dataclass(frozen=True)
class FieldRow:
    """A field as the documentation lists it; `default` is JSON, or None where a value must be given."""

    field: str
    variable: str
    default: str | None
    about: str


def as_table(effective: Effective[Any], title: str) -> Table:
    """Every field, its value and who gave it."""
    table = Table(title=title)
    for column in ("field", "value", "from"):
        table.add_column(column, overflow="fold")
    for field, value in _values(effective):
        table.add_row(field, _text(value), effective.source(field))
    return table


def as_json(effective: Effective[Any]) -> str:
    """{"FIELD": {"value": ..., "from": ...}} by dotted field."""
    found = {field: {"value": value, "from": effective.source(field)} for field, value in _values(effective)}
    return json.dumps(found, indent=2)


def field_rows(model: type[BaseModel], prefix: str) -> list[FieldRow]:
    """Every field of a configuration with its variable under a prefix, its default, and its sentence."""
    return [
        FieldRow(
            field,
            environment_name(prefix, field),
            None if info.is_required() else _default(info.get_default(call_default_factory=True)),
            info.description or "",
        )
        for field, info in fields_of(model).items()
    ]


def _values(effective: Effective[Any]) -> Iterator[tuple[str, Any]]:
    values = effective.config.model_dump(mode="json")
    sections = set()
    for field in fields_of(type(effective.config)):
        value: Any = values
        place = ""
        for name in field.split("."):
            place = f"{place}.{name}".lstrip(".")
            value = value[name]
            if value is None:
                break
        if place not in sections:
            sections.add(place)
            yield place, masked(place, value)


def _default(value: Any) -> str:
    return "" if value is PydanticUndefined else json.dumps(value, default=str)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
