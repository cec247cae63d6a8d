"""What `--data` means on both sides' command lines; knows no command and no other setting."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

from command_config import hint
from task_data.config import DataName
from teaching_protocol.errors import ConfigError

__all__ = ["data_fields"]


def data_fields(data: str | None) -> dict[str, Any]:
    """`--data` by the dotted fields it sets: a data set by name, or a file.

    Raises:
        ConfigError: it is neither.
    """
    if data is None or data in get_args(DataName):
        return {"data.name": data}
    if not Path(data).exists():
        raise ConfigError(
            f"--data: received {data!r}, expected one of {', '.join(get_args(DataName))}, or a file that exists{hint(data, get_args(DataName))}"
        )
    return {"data.name": "file", "data.path": data}
