"""A YAML or TOML file as a mapping of fields; knows no field."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import yaml

from teaching_protocol.errors import ConfigError

__all__ = ["read_mapping"]


def read_mapping(path: Path) -> dict[str, Any]:
    """Reads a file: TOML where its name ends so, else YAML, of which JSON is a part. An empty one gives no fields.

    Raises:
        ConfigError: it cannot be read, or holds something else.
    """
    try:
        text = path.read_text(encoding="utf-8")
        found = tomllib.loads(text) if path.suffix == ".toml" else yaml.safe_load(text)
    except (OSError, tomllib.TOMLDecodeError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"config file {path} cannot be read: {error}") from error
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise ConfigError(f"config file {path}: received {type(found).__name__}, expected a mapping of fields")
    return found
