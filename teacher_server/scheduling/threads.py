"""Threads of the calls: work, control, newcomers and refusals each have their own, so that none waits behind another.

A call of work holds a thread from its first byte until its reply is ready, a call of control for microseconds.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

__all__ = ["CONTROL", "CallThreads", "on"]

CONTROL = ("Describe", "Renew", "Leave")
_SPARE, _CONTROL, _REFUSALS, _NEWCOMERS = 512, 8, 2, 4


class CallThreads:
    """Four pools: calls of work, of control, refusals, and newcomers: first calls of a token, whose hash is to be computed.

    `work` has a thread for every permit, and more for what is being read or is answered without one: gRPC reads a
    request in the thread that will answer it, so slow and endless requests each hold one. A thread is started when
    none is idle.
    """

    def __init__(self, permits: int) -> None:
        self.work = ThreadPoolExecutor(permits + _SPARE, thread_name_prefix="call", initializer=_one_core)
        self.control = ThreadPoolExecutor(_CONTROL, thread_name_prefix="control")
        self.newcomers = ThreadPoolExecutor(_NEWCOMERS, thread_name_prefix="newcomer")
        self.refusals = ThreadPoolExecutor(_REFUSALS, thread_name_prefix="refusal")

    def close(self) -> None:
        """Lets the threads end."""
        for pool in (self.work, self.control, self.newcomers, self.refusals):
            pool.shutdown(wait=False)


def _one_core() -> None:
    """A call's thread casts and copies; were it to do so on all cores, its idle helpers would take them from the engine."""
    torch.set_num_threads(1)


def on(pool: ThreadPoolExecutor, behaviour: Callable[..., Any]) -> Callable[..., Any]:
    """Has gRPC run a handler in a pool of its own (an experimental attribute of grpcio's handlers, there since 2019)."""

    def answer(request: Any, context: Any) -> Any:
        return behaviour(request, context)

    answer.experimental_thread_pool = pool  # type: ignore[attr-defined]
    return answer
