"""What `--data` means on both sides' command lines; knows no command and no other setting."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

from command_config import hint
from task_data.config import DataName, is_on_hub
from teaching_protocol.errors import ConfigError

__all__ = ["data_fields"]

_ENDINGS = (".csv", ".tsv", ".jsonl", ".json", ".parquet", ".gz", ".txt", ".yaml")
"""Of what is meant for a file, even where it looks like OWNER/NAME."""


def data_fields(data: str | None) -> dict[str, Any]:
    """`--data` by the dotted fields it sets: a data set by name, a file or folder, or OWNER/NAME of the hub.

    Raises:
        ConfigError: it is none of them.
    """
    if data is None or data in get_args(DataName):
        return {"data.name": data}
    if not Path(data).exists():
        if data.lower().endswith(_ENDINGS) or data.startswith((".", "/")):
            raise ConfigError(f"--data: there is no file or folder {data}; check the path, from {Path.cwd()}")
        if is_on_hub(data):
            return {"data.name": data}
        raise ConfigError(
            f"--data: received {data!r}, expected one of {', '.join(get_args(DataName))}, a file or folder that exists, or "
            f"OWNER/NAME of the Hugging Face hub{hint(data, get_args(DataName))}"
        )
    return {"data.name": "file", "data.path": data}
