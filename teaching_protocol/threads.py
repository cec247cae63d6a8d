"""Threads beside the one that computes: for calls, which cast and copy tensors; knows neither side."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch

__all__ = ["side_threads"]


def side_threads(count: int, name: str) -> ThreadPoolExecutor:
    """Gives a pool of threads that work on one core each.

    OpenMP lets a team's threads wait by spinning only while a process has no more of them than there are cores. A second
    team, which a cast in another thread would start, puts those of the first to sleep between any two operations.
    """
    torch.get_num_threads()  # the caller's own number is settled before another thread's
    return ThreadPoolExecutor(count, name, initializer=torch.set_num_threads, initargs=(1,))
