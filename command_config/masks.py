"""Values as they may be shown: passwords in addresses, tokens and what a secret name holds are masked; knows no source."""

from __future__ import annotations

import re
from typing import Any

__all__ = ["MASK", "masked"]

MASK = "***"

_PASSWORD = re.compile(r"(:/{1,2})[^/\s@]+@")  # user:password, or a token alone, before the host
_TOKEN = re.compile(r"\b(ttk-[0-9a-f]{16}-|hf_|ghp_|glpat-|sk-)[A-Za-z0-9_-]{8,}")
_SECRET = re.compile(r"(^|_)(token|password|passwd|secret|passphrase|credential|api_?key)s?$", re.IGNORECASE)


def masked(field: str, value: Any, is_known: bool = True) -> Any:
    """The value with its secrets masked, at any depth.

    Args:
        field: its dotted name.
        value: JSON values.
        is_known: whether the configuration has this field; its own fields hold paths of secrets, never a secret.
    """
    if not is_known and _SECRET.search(field.rpartition(".")[2]):
        return MASK
    if isinstance(value, str):
        return _TOKEN.sub(MASK, _PASSWORD.sub(rf"\1{MASK}@", value))
    if isinstance(value, dict):
        return {name: masked(str(name), each, is_known=False) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [masked(field, each, is_known) for each in value]
    return value
