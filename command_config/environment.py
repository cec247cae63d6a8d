"""Environment variables as values of fields: `PREFIX_SECTION__FIELD`; a name that is no field's is an error, not ignored."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from command_config.fields import choices_of, fields_of, nearest
from teaching_protocol.errors import ConfigError

__all__ = ["environment_name", "from_environment"]

_TEXTS = (str, Path, int, float, bool)


def environment_name(prefix: str, field: str) -> str:
    """The variable of a field: `training.lr` under `STUDENT_CLIENT_` is `STUDENT_CLIENT_TRAINING__LR`."""
    return prefix + field.replace(".", "__").upper()


def from_environment(model: type[BaseModel], prefix: str, environ: Mapping[str, str]) -> dict[str, tuple[Any, str]]:
    """The fields that variables of this prefix set: value and variable by dotted field.

    Lists and mappings are JSON (or YAML in one line); `null` is None where a field may be None; all else is the text itself.

    Raises:
        ConfigError: a variable with this prefix that is no field's, or a list that cannot be read.
    """
    fields = fields_of(model)
    names = {environment_name(prefix, field): field for field in fields}
    given = {name: text for name, text in environ.items() if name.startswith(prefix)}
    for name in sorted(given.keys() - names.keys()):
        raise ConfigError(_unknown(name, prefix, names))
    return {names[name]: (_value(name, fields[names[name]], text), name) for name, text in given.items()}


def _value(name: str, info: FieldInfo, text: str) -> Any:
    """What a field's own validation is to see of a text."""
    choices = choices_of(info)
    if type(None) in choices and text.strip().lower() == "null":
        return None
    if any(each in _TEXTS or get_origin(each) is Literal for each in choices) or text.strip()[:1] not in ("[", "{"):
        return text
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(
            f"environment variable {name}: received a text that is no JSON, expected a list or mapping"
        ) from error


def _unknown(name: str, prefix: str, names: Mapping[str, str]) -> str:
    """Why a variable is refused; its value is not said, it may be a secret that landed in the wrong place."""
    if name.startswith((f"{prefix}SERVICE_", f"{prefix}PORT_")):
        service = prefix.rstrip("_").lower().replace("_", "-")
        return (
            f"environment variable {name}: Kubernetes sets it for a Service named {service}, and others of this command's own "
            "names with it; put `enableServiceLinks: false` into the pod's spec, or name the Service otherwise"
        )
    near = nearest(name.removeprefix(prefix), [each.removeprefix(prefix) for each in names])
    told = (
        f"did you mean {prefix}{near}?"
        if near
        else f"fields are set by {prefix}FIELD, sections joined by two underscores."
    )
    return f"environment variable {name}: received a name that is no field's; {told} Correct it or unset it"
