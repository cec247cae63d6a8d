"""The nine verbs on gRPC: bytes to values, values to bytes, deadlines and cancellation; no model."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import grpc

from teacher_server.actor import TeacherActor
from teacher_server.config import ServerConfig
from teacher_server.metrics import Metrics
from teacher_server.same_host import SameHost
from teacher_server.scheduling.door import Door
from teacher_server.scheduling.threads import CONTROL
from teaching_protocol.errors import CallCancelled, MessageTooLarge
from teaching_protocol.int8 import Int8Rules
from teaching_protocol.shared_memory import SHARED_KEY, SHARED_MIN_BYTES, Block, Place
from teaching_protocol.verbs import Call
from teaching_protocol.wire import METHODS, SERVICE, Method, pieces, read

__all__ = ["add_service"]

_log = logging.getLogger(__name__)


def add_service(
    server: grpc.Server, actor: TeacherActor, metrics: Metrics, config: ServerConfig, same_host: SameHost
) -> None:
    """Registers the teacher's methods on a server."""
    door = Door(config.session_permits)
    handlers: dict[str, Any] = {
        method.name: grpc.unary_unary_rpc_method_handler(_behaviour(method, actor, metrics, config, same_host, door))
        for method in METHODS
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))


def _behaviour(
    method: Method, actor: TeacherActor, metrics: Metrics, config: ServerConfig, same_host: SameHost, door: Door
) -> Callable[[bytes, grpc.ServicerContext], bytes]:
    verb = getattr(actor, method.verb)
    pack_seconds = metrics.pack_seconds.labels(method.name)
    int8 = Int8Rules(config.int8_error, _int8_report(method.name, metrics))

    def answer(data: bytes, context: grpc.ServicerContext) -> bytes:
        started = time.perf_counter()
        block, received = _received(data, context, config.message_bytes, same_host)
        metrics.bytes.labels("received").inc(len(received))
        request: Any = read(method.request, received)
        if method.name not in CONTROL:
            _open(door, request, context, metrics)
        unpacked = time.perf_counter()
        reply = verb(request, _call(context))
        answered = time.perf_counter()
        packed = pieces(reply, getattr(request, "compression", None), config.message_bytes, int8)
        size_bytes = sum(map(len, packed))
        metrics.bytes.labels("sent").inc(size_bytes)
        if block is not None:
            metrics.shared_bytes.labels("received").inc(len(received))
            if SHARED_MIN_BYTES <= size_bytes <= block.size_bytes:
                context.set_trailing_metadata(((SHARED_KEY, str(block.put(packed))),))
                metrics.shared_bytes.labels("sent").inc(size_bytes)
                packed = []
        joined = b"".join(packed)
        pack_seconds.observe(unpacked - started + time.perf_counter() - answered)
        return joined

    return answer


def _int8_report(method: str, metrics: Metrics) -> Callable[[float, bool], None]:
    """Counts, and says the first time that a tensor was too rough as int8."""
    is_first = threading.Lock()

    def report(error: float, is_kept: bool) -> None:
        metrics.int8_error.labels(method).observe(error)
        if not is_kept:
            metrics.int8_fallbacks.labels(method).inc()
            if is_first.acquire(blocking=False):
                _log.info("%s: a tensor would have had the relative error %.3f as int8; such go as bf16", method, error)

    return report


def _received(
    data: bytes, context: grpc.ServicerContext, message_bytes: int, same_host: SameHost
) -> tuple[Block | None, bytes | memoryview]:
    """The block that came with a call, if any, and the request: out of the block, or the call's own bytes."""
    named = next((value for key, value in context.invocation_metadata() if key == SHARED_KEY), None)
    if named is None:
        return None, data
    place = Place.parse(str(named))
    block = same_host.find(place)
    if place.size_bytes > message_bytes:
        raise MessageTooLarge(
            f"the request is {place.size_bytes} bytes, the limit is {message_bytes}; send fewer rows or tokens"
        )
    return block, block.take(place.size_bytes)


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
