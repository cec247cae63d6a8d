"""The nine verbs on gRPC: bytes to values, values to bytes, deadlines and cancellation; no model."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import grpc

from teacher_server.actor import TeacherActor
from teacher_server.config import ServerConfig
from teacher_server.door import Door
from teacher_server.metrics import Metrics
from teacher_server.threads import CONTROL
from teaching_protocol.errors import CallCancelled
from teaching_protocol.verbs import Call
from teaching_protocol.wire import METHODS, SERVICE, Method, read, write

__all__ = ["add_service"]


def add_service(server: grpc.Server, actor: TeacherActor, metrics: Metrics, config: ServerConfig) -> None:
    """Registers the teacher's methods on a server."""
    door = Door(config.session_permits)
    handlers: dict[str, Any] = {
        method.name: grpc.unary_unary_rpc_method_handler(_behaviour(method, actor, metrics, config.message_bytes, door))
        for method in METHODS
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))


def _behaviour(
    method: Method, actor: TeacherActor, metrics: Metrics, message_bytes: int, door: Door
) -> Callable[[bytes, grpc.ServicerContext], bytes]:
    verb = getattr(actor, method.verb)
    pack_seconds = metrics.pack_seconds.labels(method.name)

    def answer(data: bytes, context: grpc.ServicerContext) -> bytes:
        started = time.perf_counter()
        metrics.bytes.labels("received").inc(len(data))
        request: Any = read(method.request, data)
        if method.name not in CONTROL:
            _open(door, request, context, metrics)
        unpacked = time.perf_counter()
        reply = verb(request, _call(context))
        answered = time.perf_counter()
        packed = write(reply, getattr(request, "compression", None), message_bytes)
        metrics.bytes.labels("sent").inc(len(packed))
        pack_seconds.observe(unpacked - started + time.perf_counter() - answered)
        return packed

    return answer


def _open(door: Door, request: Any, context: grpc.ServicerContext, metrics: Metrics) -> None:
    """Counts a session's call as open until its reply is delivered."""
    session = getattr(request, "session", None)
    if session is None:
        return

    def close() -> None:
        door.leave(session.session_id)
        metrics.open_calls.set(len(door))

    door.enter(session.session_id)
    metrics.open_calls.set(len(door))
    if not context.add_callback(close):
        close()
        raise CallCancelled("the caller went away")


def _call(context: grpc.ServicerContext) -> Call:
    remaining = context.time_remaining()
    cancelled = threading.Event()
    context.add_callback(cancelled.set)
    # gRPC gives a call without a deadline an absurdly far one
    deadline = time.monotonic() + remaining if remaining is not None and remaining < 1e8 else None
    return Call(deadline, cancelled)
