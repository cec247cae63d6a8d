"""The nine verbs on gRPC: bytes to values, values to bytes, deadlines and cancellation; no model."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import grpc

from teacher_server.actor import TeacherActor
from teacher_server.metrics import Metrics
from teacher_server.same_host import SameHost
from teaching_protocol.errors import MessageTooLarge
from teaching_protocol.shared_memory import SHARED_KEY, SHARED_MIN_BYTES, Block, Place
from teaching_protocol.verbs import Call
from teaching_protocol.wire import METHODS, SERVICE, Method, pieces, read

__all__ = ["add_service"]


def add_service(
    server: grpc.Server, actor: TeacherActor, metrics: Metrics, message_bytes: int, same_host: SameHost
) -> None:
    """Registers the teacher's methods on a server."""
    handlers: dict[str, Any] = {
        method.name: grpc.unary_unary_rpc_method_handler(_behaviour(method, actor, metrics, message_bytes, same_host))
        for method in METHODS
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))


def _behaviour(
    method: Method, actor: TeacherActor, metrics: Metrics, message_bytes: int, same_host: SameHost
) -> Callable[[bytes, grpc.ServicerContext], bytes]:
    verb = getattr(actor, method.verb)
    pack_seconds = metrics.pack_seconds.labels(method.name)

    def answer(data: bytes, context: grpc.ServicerContext) -> bytes:
        started = time.perf_counter()
        block, received = _received(data, context, message_bytes, same_host)
        metrics.bytes.labels("received").inc(len(received))
        request: Any = read(method.request, received)
        unpacked = time.perf_counter()
        reply = verb(request, _call(context))
        answered = time.perf_counter()
        packed = pieces(reply, getattr(request, "compression", None), message_bytes)
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


def _call(context: grpc.ServicerContext) -> Call:
    remaining = context.time_remaining()
    cancelled = threading.Event()
    context.add_callback(cancelled.set)
    # gRPC gives a call without a deadline an absurdly far one
    deadline = time.monotonic() + remaining if remaining is not None and remaining < 1e8 else None
    return Call(deadline, cancelled)
