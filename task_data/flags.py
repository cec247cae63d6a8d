"""What `--data` and `--set` mean on both sides' command lines; knows no command and no other setting."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import yaml

from task_data.config import DataName
from teaching_protocol.errors import ConfigError

__all__ = ["data_fields", "setting"]


def data_fields(data: str | None) -> dict[str, Any]:
    """`--data` by the dotted fields it sets: a data set by name, or a file.

    Raises:
        ConfigError: it is neither.
    """
    if data is None or data in get_args(DataName):
        return {"data.name": data}
    if not Path(data).exists():
        raise ConfigError(
            f"--data: received {data!r}, expected one of {', '.join(get_args(DataName))}, or a file that exists"
        )
    return {"data.name": "file", "data.path": data}


def setting(text: str, example: str) -> tuple[str, Any]:
    """`field=value`, the value in YAML, as field and value.

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
