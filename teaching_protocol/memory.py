"""glibc's malloc set for messages of megabytes; both sides' commands call it first."""

from __future__ import annotations

import ctypes
import sys

__all__ = ["keep_freed_memory"]

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3  # malloc.h
_MIB = 2**20


def keep_freed_memory() -> bool:
    """Tells malloc to keep freed blocks for the next message instead of giving them back to the kernel.

    Without it each large buffer is mapped anew and each of its pages faults once more, at every call
    (measured in benchmarks/LOG.md). The process holds its largest footprint until it ends.

    Returns:
        whether all of it was taken; False where malloc is not glibc's.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return False
    wishes = ((_M_MMAP_THRESHOLD, 32 * _MIB), (_M_TRIM_THRESHOLD, 1024 * _MIB), (_M_TOP_PAD, 64 * _MIB))
    taken = [mallopt(option, size) for option, size in wishes]
    return all(taken)
