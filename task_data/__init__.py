"""Data sets as three splits without leakage, and their batches; knows no student and no method.

A name is imported when it is first asked for, so that a command line can name data sets without loading torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from task_data.batching import (
        TOKEN_LABELS,
        Batch,
        batches,
        count_batches,
        pack_texts,
        teacher_ports,
        teacher_view,
        token_lengths,
    )
    from task_data.loaders import LOADERS, load_data
    from task_data.splits import IGNORED, Split, Task, TaskData
    from task_data.streaming import RowStream

__all__ = [
    "IGNORED",
    "LOADERS",
    "TOKEN_LABELS",
    "Batch",
    "RowStream",
    "Split",
    "Task",
    "TaskData",
    "batches",
    "count_batches",
    "load_data",
    "pack_texts",
    "teacher_ports",
    "teacher_view",
    "token_lengths",
]

_HOMES = {
    **dict.fromkeys(("LOADERS", "load_data"), "task_data.loaders"),
    **dict.fromkeys(("IGNORED", "Split", "Task", "TaskData"), "task_data.splits"),
    "RowStream": "task_data.streaming",
}
"""Where what is not in `task_data.batching` lies."""

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        found = getattr(import_module(_HOMES.get(name, "task_data.batching")), name)
        globals()[name] = found
        return found
