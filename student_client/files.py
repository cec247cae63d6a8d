"""Files and folders that are put in their place whole, or not at all; knows nothing of what is in them."""

from __future__ import annotations

import ctypes
import os
import shutil
from pathlib import Path

__all__ = ["replace_file", "replace_folder", "sync"]

_HERE, _EXCHANGE = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux


def replace_file(path: Path, text: str) -> None:
    """Writes a file beside its place, brings it to the disk and renames it; on an error the old one stays.

    Raises:
        OSError: it cannot be written.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.write_text(text, encoding="utf-8")
        sync(draft)
        draft.replace(path)
    except OSError:
        draft.unlink(missing_ok=True)
        raise
    sync(path.parent)


def replace_folder(draft: Path, place: Path) -> None:
    """Puts a written folder in the place of another, or of none, after bringing it to the disk.

    Raises:
        OSError: it cannot be done; what was at the place is there still.
    """
    for path in sorted(draft.rglob("*")):
        sync(path)
    sync(draft)
    if place.exists():
        _exchange(draft, place)
        sync(place.parent)
        shutil.rmtree(draft, ignore_errors=True)
    else:
        draft.rename(place)
        sync(place.parent)


def sync(path: Path) -> None:
    """Brings a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _exchange(one: Path, other: Path) -> None:
    """Swaps two folders, at no moment without either; in two renames where the system cannot do it in one."""
    try:
        swap = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        done = False
    else:
        done = swap(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) == 0
    if not done:
        old = other.with_name(f".{other.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        other.rename(old)
        one.rename(other)
        old.rename(one)
