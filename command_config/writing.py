"""A configuration as a YAML file with a comment on every field, from the fields' own descriptions; knows no command."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

__all__ = ["OFF", "commented_yaml"]

OFF = "#"
"""Stands directly before a field that is left at its default; a comment has a space after it."""

_WIDTH = 118


def commented_yaml(config: BaseModel, title: str, left_out: Collection[str] = ()) -> str:
    """The whole configuration: what differs from the defaults as values, what does not as lines to be switched on.

    Args:
        config: whose JSON values YAML can hold.
        title: sentences for the head of the file.
        left_out: sections, by dotted name, that are at their defaults and would only distract.
    """
    head = "".join(f"# {line}\n" for line in title.splitlines())
    return head + "\n" + "\n".join(_lines(config, "", tuple(left_out))) + "\n"


def _lines(config: BaseModel, place: str, left_out: tuple[str, ...]) -> Iterator[str]:
    """Of one section, indented by its depth."""
    indent = "  " * place.count(".")
    plain = config.model_dump(mode="json")
    for name, info in type(config).model_fields.items():
        if f"{place}{name}" in left_out:
            continue
        value = getattr(config, name)
        if isinstance(value, BaseModel):
            inner = list(_lines(value, f"{place}{name}.", left_out))
            is_off = all(line.lstrip().startswith(OFF) for line in inner)
            if is_off and _is_chosen(info, value):  # a section that is there, with nothing but defaults in it
                place_of_first = next(at for at, line in enumerate(inner) if line.lstrip()[1:2] != " ")
                inner[place_of_first] = inner[place_of_first].replace(OFF, "", 1)
                is_off = False
            yield from _comment(info, indent)
            yield f"{indent}{OFF if is_off else ''}{name}:"
            yield from inner
        else:
            yield from _comment(info, indent)
            yield f"{indent}{'' if _is_chosen(info, value) else OFF}{name}: {_in_one_line(plain[name])}"
        if not place:
            yield ""


def _comment(info: FieldInfo, indent: str) -> Iterator[str]:
    words, line = (info.description or "").split(), f"{indent}#"
    for word in words:
        if len(line) + 1 + len(word) > _WIDTH:
            yield line
            line = f"{indent}#"
        line += f" {word}"
    if words:
        yield line


def _in_one_line(value: Any) -> str:
    text: str = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, sort_keys=False, width=10**6)
    return text.removesuffix("\n").removesuffix("\n...")


def _is_chosen(info: FieldInfo, value: Any) -> bool:
    """Whether the value must stand in the file: it is not what would be there without it."""
    if info.is_required():
        return True
    return bool(info.get_default(call_default_factory=True) != value)
