"""What a model's weights take: in its files, told by their headers, and as they are served; reads no weight."""

from __future__ import annotations

import json
import struct
from collections import Counter
from itertools import chain
from pathlib import Path

from teacher_server.models.packaged import packaged_folder
from teacher_server.models.split import FrozenTeacher
from teaching_protocol.errors import ModelLoadError

__all__ = ["file_bytes", "served_bytes"]

_LONGEST_HEADER = 100 * 2**20


def file_bytes(model: str) -> dict[str, int]:
    """Bytes by dtype in a local folder's safetensors files; empty where the model is not in a folder.

    Raises:
        ModelLoadError: a file without a header.
    """
    folder = packaged_folder(model) or Path(model)
    found: Counter[str] = Counter()
    for path in sorted(folder.glob("*.safetensors")) if folder.is_dir() else []:
        for name, entry in _header(path).items():
            if name != "__metadata__":
                start, end = entry["data_offsets"]
                found[str(entry["dtype"])] += int(end) - int(start)
    return dict(found)


def served_bytes(teacher: FrozenTeacher) -> dict[str, int]:
    """Bytes by dtype of all weights and buffers as they will lie on the device, tied ones counted once."""
    found: Counter[str] = Counter()
    for tensor in chain(teacher.model.parameters(), teacher.model.buffers()):
        found[str(tensor.dtype).removeprefix("torch.")] += tensor.numel() * tensor.element_size()
    return dict(found)


def _header(path: Path) -> dict[str, dict[str, list[int]]]:
    """The JSON before the tensors: 8 bytes of its length, then itself (the safetensors format)."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > _LONGEST_HEADER:
                raise ValueError(f"a header of {length} bytes")
            found: dict[str, dict[str, list[int]]] = json.loads(file.read(length))
    except (OSError, ValueError, struct.error) as error:
        raise ModelLoadError(f"{path} has no safetensors header ({error}); fetch or save it again") from error
    return found
