"""The nine verbs on gRPC: bytes to values, values to bytes, deadlines and cancellation; no model."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import grpc

from teacher_server.actor import TeacherActor
from teacher_server.metrics import Metrics
from teaching_protocol.verbs import Call
from teaching_protocol.wire import METHODS, SERVICE, Method, read, write

__all__ = ["add_service"]


def add_service(server: grpc.Server, actor: TeacherActor, metrics: Metrics, message_bytes: int) -> None:
    """Registers the teacher's methods on a server."""
    handlers: dict[str, Any] = {
        method.name: grpc.unary_unary_rpc_method_handler(_behaviour(method, actor, metrics, message_bytes))
        for method in METHODS
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))


def _behaviour(
    method: Method, actor: TeacherActor, metrics: Metrics, message_bytes: int
) -> Callable[[bytes, grpc.ServicerContext], bytes]:
    verb = getattr(actor, method.verb)
    pack_seconds = metrics.pack_seconds.labels(method.name)

    def answer(data: bytes, context: grpc.ServicerContext) -> bytes:
        started = time.perf_counter()
        metrics.bytes.labels("received").inc(len(data))
        request: Any = read(method.request, data)
        unpacked = time.perf_counter()
        reply = verb(request, _call(context))
        answered = time.perf_counter()
        packed = write(reply, getattr(request, "compression", None), message_bytes)
        metrics.bytes.labels("sent").inc(len(packed))
        pack_seconds.observe(unpacked - started + time.perf_counter() - answered)
        return packed

    return answer


def _call(context: grpc.ServicerContext) -> Call:
    remaining = context.time_remaining()
    cancelled = threading.Event()
    context.add_callback(cancelled.set)
    # gRPC gives a call without a deadline an absurdly far one
    deadline = time.monotonic() + remaining if remaining is not None and remaining < 1e8 else None
    return Call(deadline, cancelled)
