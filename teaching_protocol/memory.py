"""glibc's malloc set for messages of megabytes; both sides' commands call it first."""

from __future__ import annotations

import ctypes
import os
import sys

__all__ = ["OFF_SWITCH", "arenas", "keep_freed_memory"]

OFF_SWITCH = "TALKING_MODELS_MALLOC"
"""The environment variable that leaves malloc as it is when it is 0."""

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -2, -3, -8  # malloc.h
_MIB = 2**20
_GLIBC_ENVIRONMENT = ("MALLOC_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Tells malloc to keep freed blocks for the next message instead of giving them back to the kernel.

    Without it each large buffer is mapped anew and each of its pages faults once more, at every call
    (measured in benchmarks/LOG.md). Arenas are few, as each keeps what it once had, but more than threads compute at once
    (see `arenas`). Call it before anything starts a thread (pandas does when it is imported), since an arena that is there stays.
    The process holds its largest footprint until it ends.

    `TALKING_MODELS_MALLOC=0` leaves malloc alone, and so does any setting of the user's own (`MALLOC_*`,
    `GLIBC_TUNABLES`).

    Returns:
        whether all of it was taken; False where malloc is not glibc's, or the user said otherwise.
    """
    if not sys.platform.startswith("linux") or _user_decides():
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return False
    # before glibc 2.35 a threshold over 32 MiB was refused
    mapped = mallopt(_M_MMAP_THRESHOLD, 512 * _MIB) or mallopt(_M_MMAP_THRESHOLD, 32 * _MIB)
    wishes = ((_M_TRIM_THRESHOLD, 1024 * _MIB), (_M_TOP_PAD, 64 * _MIB), (_M_ARENA_MAX, arenas()))
    taken = [mallopt(option, size) for option, size in wishes]
    return bool(mapped and all(taken))


def arenas() -> int:
    """Most arenas of malloc: two for each core that this process may use, and eight for what is beside the computing.

    Threads are dealt out to arenas in the order in which they first allocate, so there must be one for each that computes
    (those that run the model, and their teams) and for those that came before them. Two that compute in one arena wait for
    each other wherever an operator allocates inside, as attention's backward in bfloat16 does: the step takes 1.4 to 2 times as long.
    """
    return 2 * len(os.sched_getaffinity(0)) + 8


def _user_decides() -> bool:
    return os.environ.get(OFF_SWITCH) == "0" or any(name.startswith(_GLIBC_ENVIRONMENT) for name in os.environ)
