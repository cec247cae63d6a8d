"""Threads of the calls: work, control, newcomers and refusals each have their own, so that none waits behind another.

A call of work holds a thread until its reply is ready, a call of control for microseconds.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

__all__ = ["CONTROL", "CallThreads", "on"]

CONTROL = ("Describe", "Renew", "Leave")
_SPARE, _CONTROL, _REFUSALS, _NEWCOMERS = 16, 8, 2, 4


class CallThreads:
    """Four pools. `newcomers` are first calls of a token, whose hash is still to be computed. `work` has a thread for every permit, and some for what is being read or is answered without one."""

    def __init__(self, permits: int) -> None:
        self.work = ThreadPoolExecutor(permits + _SPARE, thread_name_prefix="call")
        self.control = ThreadPoolExecutor(_CONTROL, thread_name_prefix="control")
        self.newcomers = ThreadPoolExecutor(_NEWCOMERS, thread_name_prefix="newcomer")
        self.refusals = ThreadPoolExecutor(_REFUSALS, thread_name_prefix="refusal")

    def close(self) -> None:
        """Lets the threads end."""
        for pool in (self.work, self.control, self.newcomers, self.refusals):
            pool.shutdown(wait=False)


def on(pool: ThreadPoolExecutor, behaviour: Callable[..., Any]) -> Callable[..., Any]:
    """Has gRPC run a handler in a pool of its own (an experimental attribute of grpcio's handlers, there since 2019)."""

    def answer(request: Any, context: Any) -> Any:
        return behaviour(request, context)

    answer.experimental_thread_pool = pool  # type: ignore[attr-defined]
    return answer
