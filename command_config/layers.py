"""Values of a configuration laid over each other, and who gave each; knows no command.

The order is: defaults, the file, the environment, flags. What comes later holds.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from command_config.environment import from_environment
from command_config.fields import fields_of, hint
from command_config.files import read_mapping
from command_config.masks import masked
from teaching_protocol.errors import ConfigError

__all__ = ["Effective", "Layers", "expected", "setting"]

M = TypeVar("M", bound=BaseModel)

_NAMES = re.compile("'([^']+)'")


@dataclass(frozen=True)
class Effective(Generic[M]):
    """A configuration and, by dotted field, who gave what was given; a field that is not there has its default."""

    config: M
    sources: Mapping[str, str]

    def source(self, field: str) -> str:
        """Who gave a field's value: `default`, `file PATH`, `environment NAME` or `flag`."""
        return _source(self.sources, field) or "default"


class Layers:
    """Values by field, each with its source; every method lays more over those before and gives the layers back."""

    def __init__(self) -> None:
        self._values: dict[str, Any] = {}
        self._sources: dict[str, str] = {}

    def file(self, path: Path | None) -> Self:
        """A YAML or TOML file; None lays nothing.

        Raises:
            ConfigError: it cannot be read.
        """
        return self if path is None else self.mapping(read_mapping(path), f"file {path}")

    def mapping(self, values: Mapping[str, Any], source: str) -> Self:
        """Nested values; a section is laid field by field.

        Raises:
            ConfigError: a field lies in something that is no section.
        """
        return self.dotted(dict(_leaves(values, "")), source)

    def environment(self, model: type[BaseModel], prefix: str, environ: Mapping[str, str]) -> Self:
        """The variables of a prefix.

        Raises:
            ConfigError: one that is no field's.
        """
        for field, (value, name) in from_environment(model, prefix, environ).items():
            self._set(field, value, f"environment {name}")
        return self

    def dotted(self, values: Mapping[str, Any], source: str) -> Self:
        """Values by dotted field; each replaces the whole field, whatever was in it.

        Raises:
            ConfigError: a field lies in something that is no section.
        """
        for field, value in values.items():
            self._set(field, value, source)
        return self

    def has(self, field: str) -> bool:
        """Whether a top field was given by any layer."""
        return field in self._values

    def validate(self, model: type[M]) -> Effective[M]:
        """The configuration that all layers come to.

        Raises:
            ConfigError: an unknown field, or a value that cannot be; says which, and who gave it.
        """
        try:
            return Effective(model.model_validate(self._values), dict(self._sources))
        except ValidationError as error:
            said = "; ".join(self._fault(model, fault) for fault in _innermost(error))
            raise ConfigError(f"configuration: {said}") from error

    def _set(self, field: str, value: Any, source: str) -> None:
        values, (*parents, name) = self._values, field.split(".")
        for depth, parent in enumerate(parents, start=1):
            inner = values.get(parent)
            if inner is not None and not isinstance(inner, dict):
                place = ".".join(parents[:depth])
                raise ConfigError(
                    f"{field}: {place} is {masked(place, inner)!r}, expected a mapping of fields; override the field itself, or "
                    f"correct what set it (from the {_source(self._sources, place)})"
                )
            values[parent] = values = {} if inner is None else dict(inner)
            self._sources.pop(".".join(parents[:depth]), None)
        values[name] = value
        for known in [each for each in self._sources if each.startswith(f"{field}.")]:
            del self._sources[known]
        self._sources[field] = source

    def _fault(self, model: type[BaseModel], fault: Any) -> str:
        field, known = ".".join(map(str, fault["loc"])), fields_of(model)
        source = _source(self._sources, field)
        told = f" (from the {source})" if source else ""
        received = repr(masked(field, fault["input"], is_known=field in known))
        if fault["type"] == "missing":
            return f"{field}: received nothing, expected a value{told}"
        if not field:
            return expected(fault)
        meant = ""
        if fault["type"] == "extra_forbidden":
            meant = hint(field, known)
        elif fault["type"] == "literal_error":
            meant = hint(str(fault["input"]), _NAMES.findall(fault["msg"]))
        return f"{field}: received {received}, expected {expected(fault)}{told}{meant}"


def expected(fault: Mapping[str, Any]) -> str:
    """What pydantic wanted instead, to stand behind "expected": of one fault of a `ValidationError`."""
    if fault["type"] == "extra_forbidden":
        return "no field of this name"
    return str(fault["msg"]).removeprefix("Value error, ").removeprefix("Input should be ")


def setting(text: str, example: str) -> tuple[str, Any]:
    """`field=value` of a flag `--set`, the value in YAML, as field and value.

    Raises:
        ConfigError: it is no such pair; `example` shows one.
    """
    field, equals, value = text.partition("=")
    if not equals or not field:
        raise ConfigError(f"--set: received {text!r}, expected field=value, such as {example}")
    try:
        return field, yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {field}: received {value!r}, expected a YAML value: {error}") from error


def _leaves(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _source(sources: Mapping[str, str], field: str) -> str:
    """Who gave a field, or the section around it, or what lies in it; empty where nobody did."""
    place = field
    while place:
        if place in sources:
            return sources[place]
        place = place.rpartition(".")[0]
    inside = dict.fromkeys(source for each, source in sources.items() if each.startswith(f"{field}.")) if field else {}
    return " and ".join(inside)


def _innermost(error: ValidationError) -> list[Any]:
    """The faults without those of a list or section that is at fault by what is in it alone."""
    faults = error.errors()
    places = [fault["loc"] for fault in faults]
    return [
        fault for fault in faults if not any(place != fault["loc"] == place[: len(fault["loc"])] for place in places)
    ]
