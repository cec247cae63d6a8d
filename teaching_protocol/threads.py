"""How many threads each thread computes with: one team for the one that has the model, none for those beside it.

OpenMP lets a team's threads wait by spinning only while a process has no more of them than there are cores. A second
team, which a cast in another thread would start, puts those of the first to sleep between any two operations.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import torch

__all__ = ["compute_with", "side_threads"]

_SETTLING = threading.Lock()


def compute_with(count: int) -> None:
    """Has the calling thread's tensor operations use so many threads, whatever others say before or after.

    torch keeps what was set last by anybody for threads that have not settled theirs, which the first look does.
    """
    with _SETTLING:
        torch.set_num_threads(count)
        torch.get_num_threads()


def side_threads(count: int, name: str) -> ThreadPoolExecutor:
    """Gives a pool of threads that work on one core each."""
    with _SETTLING:
        torch.get_num_threads()  # the caller's own number is settled before another thread's
    return ThreadPoolExecutor(count, name, initializer=compute_with, initargs=(1,))
