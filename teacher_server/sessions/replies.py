"""Replies kept so that a repeated call gets the same one and has no second effect; knows no model."""

from __future__ import annotations

import dataclasses
import zlib
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch

from teaching_protocol.errors import CallConflict

__all__ = ["Replies", "fingerprint", "size_bytes"]

_REPLIES = 256


def fingerprint(request: Any) -> int:
    """A checksum over a request's fields and tensors: two bodies under one call id differ in it."""
    mark = 0
    for field in dataclasses.fields(request):
        value = getattr(request, field.name)
        if field.name == "session":
            continue
        if isinstance(value, Mapping):
            for name in sorted(value):
                tensor = value[name].detach().cpu().contiguous()
                mark = zlib.crc32(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode(), mark)
                mark = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, mark)
        elif isinstance(value, bytes):
            mark = zlib.crc32(value, zlib.crc32(field.name.encode(), mark))
        else:
            mark = zlib.crc32(f"{field.name}={value!r}".encode(), mark)
    return mark


class Replies:
    """The replies a repeated call gets again, newest kept, bounded in bytes and number."""

    def __init__(self, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        self.size_bytes = 0
        self._kept: OrderedDict[str, tuple[int, Any, int]] = OrderedDict()

    def __contains__(self, call_id: str) -> bool:
        return call_id in self._kept

    def find(self, call_id: str, fingerprint: int) -> Any | None:
        """The reply given to this call before, or None.

        Raises:
            CallConflict: the id was used with another body.
        """
        if call_id not in self._kept:
            return None
        known, reply, _ = self._kept[call_id]
        if known != fingerprint:
            raise CallConflict(
                f"call id {call_id!r} was used before with another body; give each call an id of its own"
            )
        return reply

    def keep(self, call_id: str, fingerprint: int, reply: Any, size_bytes: int) -> None:
        """Keeps a reply, letting go of the oldest beyond the budget; the newest always stays."""
        _, _, before = self._kept.pop(call_id, (0, None, 0))
        self._kept[call_id] = (fingerprint, reply, size_bytes)
        self.size_bytes += size_bytes - before
        while len(self._kept) > 1 and (self.size_bytes > self.budget_bytes or len(self._kept) > _REPLIES):
            _, (_, _, freed) = self._kept.popitem(last=False)
            self.size_bytes -= freed


def size_bytes(tensors: Mapping[str, torch.Tensor]) -> int:
    """Bytes of all these tensors."""
    return sum(tensor.nbytes for tensor in tensors.values())
