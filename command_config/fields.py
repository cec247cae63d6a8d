"""The fields of nested configurations by their dotted names; knows no value and no source."""

from __future__ import annotations

import difflib
import types
from collections.abc import Collection, Iterator
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

__all__ = ["choices_of", "fields_of", "hint", "nearest"]


def fields_of(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """Every field of a configuration that is no section of others, by its dotted name, such as `training.lr`."""
    return dict(_walk(model, ""))


def choices_of(info: FieldInfo) -> tuple[Any, ...]:
    """The types a field may have, one by one: `int | None` is both."""
    origin = get_origin(info.annotation)
    return get_args(info.annotation) if origin in (types.UnionType, Union) else (info.annotation,)


def nearest(name: str, known: Collection[str]) -> str:
    """The known name that looks most like this one; empty where none does."""
    return next(iter(difflib.get_close_matches(name, known, n=1)), "")


def hint(name: str, known: Collection[str]) -> str:
    """What an error says about a name that was perhaps mistyped: `; did you mean X?`, or nothing."""
    near = nearest(name, known)
    return f"; did you mean {near}?" if near else ""


def _walk(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, FieldInfo]]:
    for name, info in model.model_fields.items():
        section = next(
            (each for each in choices_of(info) if isinstance(each, type) and issubclass(each, BaseModel)), None
        )
        if section is None:
            yield f"{prefix}{name}", info
        else:
            yield from _walk(section, f"{prefix}{name}.")
