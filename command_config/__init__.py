"""What both commands share: the configuration in layers, help, hints, completion, exit codes; knows neither command."""

from __future__ import annotations

from command_config.environment import environment_name, from_environment
from command_config.fields import fields_of, hint
from command_config.files import read_mapping
from command_config.layers import Effective, Layers, expected, setting
from command_config.showing import as_json, as_table, field_rows

__all__ = [
    "Effective",
    "Layers",
    "as_json",
    "as_table",
    "environment_name",
    "expected",
    "field_rows",
    "fields_of",
    "from_environment",
    "hint",
    "read_mapping",
    "setting",
]
