"""Threads of the calls: work, control, newcomers and refusals each have their own, so that none waits behind another.

A call of work holds a thread from its first byte until its reply is ready, a call of control for microseconds.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from teaching_protocol.threads import side_threads

__all__ = ["CONTROL", "CallThreads", "on"]

CONTROL = ("Describe", "Renew", "Leave", "Resolve")
_SPARE, _CONTROL, _REFUSALS, _NEWCOMERS = 512, 8, 2, 4
_MORE = 256  # permits that a running server may add: half of what is spare


class CallThreads:
    """Four pools: calls of work, of control, refusals, and newcomers: first calls of a token, whose hash is to be computed.

    `work` has a thread for every permit, and more for what is being read or is answered without one: gRPC reads a
    request in the thread that will answer it, so slow and endless requests each hold one. A thread is started when
    none is idle.
    """

    def __init__(self, permits: int) -> None:
        self.most_permits = permits + _MORE
        self.work = side_threads(permits + _SPARE, "call")
        self.control = side_threads(_CONTROL, "control")
        self.newcomers = side_threads(_NEWCOMERS, "newcomer")
        self.refusals = side_threads(_REFUSALS, "refusal")

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
