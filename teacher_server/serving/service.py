"""The nine verbs on gRPC: who calls, bytes to values, values to bytes, deadlines and cancellation; no model."""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import grpc

from teacher_server.actor import TeacherActor
from teacher_server.faults import typed
from teacher_server.live import LiveSettings
from teacher_server.logs import facts_of
from teacher_server.metrics.metrics import Metrics
from teacher_server.scheduling.door import Door
from teacher_server.scheduling.identities import IdentityDoor
from teacher_server.scheduling.threads import CONTROL
from teacher_server.security.authority import Authority
from teacher_server.serving.same_host import SameHost
from teacher_server.sessions.sessions import Session
from teaching_protocol import verbs
from teaching_protocol.channel import CLOCK_KEY
from teaching_protocol.errors import CallCancelled, MessageTooLarge
from teaching_protocol.int8 import Int8Rules
from teaching_protocol.shared_memory import SHARED_KEY, SHARED_MIN_BYTES, Block, Place
from teaching_protocol.tracing import Part, Tracing
from teaching_protocol.verbs import Call
from teaching_protocol.wire import METHODS, SERVICE, Method, pieces, read

__all__ = ["add_service"]

_log = logging.getLogger(__name__)


def add_service(
    server: grpc.Server,
    actor: TeacherActor,
    metrics: Metrics,
    live: LiveSettings,
    same_host: SameHost,
    authority: Authority | None = None,
    tracing: Tracing | None = None,
) -> None:
    """Registers the teacher's methods on a server; without an authority nobody is asked who they are, and without tracing there are no spans."""
    doors = _Doors(Door(live), IdentityDoor(live), metrics)
    rooms = _Rooms(actor, metrics, live, same_host, authority or Authority(), doors, tracing or Tracing())
    handlers: dict[str, Any] = {
        method.name: grpc.unary_unary_rpc_method_handler(_behaviour(method, rooms)) for method in METHODS
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))


@dataclasses.dataclass(frozen=True)
class _Doors:
    """How many calls are open: of a session, of an identity."""

    sessions: Door
    identities: IdentityDoor
    metrics: Metrics

    def open(self, method: str, request: Any, context: grpc.ServicerContext, identity: str) -> None:
        """Counts a call as open until its reply is delivered."""
        self.identities.enter(identity, method == "Enroll", time.monotonic())
        self._until_delivered(context, lambda: self.identities.leave(identity))
        session = getattr(request, "session", None)
        if session is not None:
            self.sessions.enter(session.session_id)
            self._until_delivered(context, lambda: self.sessions.leave(session.session_id))

    def _until_delivered(self, context: grpc.ServicerContext, leave: Callable[[], None]) -> None:
        def close() -> None:
            leave()
            self.metrics.open_calls.set(len(self.sessions))

        self.metrics.open_calls.set(len(self.sessions))
        if not context.add_callback(close):
            close()
            raise CallCancelled("the caller went away")


@dataclasses.dataclass(frozen=True)
class _Rooms:
    """What a call passes through."""

    actor: TeacherActor
    metrics: Metrics
    live: LiveSettings
    same_host: SameHost
    authority: Authority
    doors: _Doors
    tracing: Tracing


def _behaviour(method: Method, rooms: _Rooms) -> Callable[[bytes, grpc.ServicerContext], bytes]:
    metrics, limit_bytes = rooms.metrics, rooms.live.now.message_bytes
    verb = _describe(rooms) if method.name == "Describe" else getattr(rooms.actor, method.verb)
    pack_seconds, call_seconds = (each.labels(method.name) for each in (metrics.pack_seconds, metrics.call_seconds))
    int8 = Int8Rules(rooms.live.now.int8_error, _int8_report(method.name, metrics))

    def answer(data: bytes, context: grpc.ServicerContext) -> bytes:
        started = time.perf_counter()
        identity = rooms.authority.identify(context.invocation_metadata(), context.auth_context)
        block, received = _received(data, context, rooms, identity)
        metrics.bytes.labels("received").inc(len(received))
        request: Any = read(method.request, received)
        session = _session_of(request, identity, rooms.actor)
        with session.usage.call(len(received)) if session is not None else nullcontext():
            if method.name not in CONTROL:
                rooms.doors.open(method.name, request, context, identity)
            if method.name == "Describe":
                context.set_trailing_metadata(((CLOCK_KEY, f"{time.time():.6f}"),))
            unpacked = time.perf_counter()
            reply = _told(method.name, verb, request, _call(context, identity), rooms.actor)
        answered = time.perf_counter()
        packed = pieces(reply, getattr(request, "compression", None), limit_bytes, int8)
        size_bytes = sum(map(len, packed))
        metrics.bytes.labels("sent").inc(size_bytes)
        if session is not None:
            session.usage.moved(0, size_bytes)
        elif (opened := _session_of(reply, identity, rooms.actor)) is not None:  # by this Enroll
            opened.usage.moved(len(received), size_bytes)
        if block is not None:
            metrics.shared_bytes.labels("received").inc(len(received))
            if SHARED_MIN_BYTES <= size_bytes <= block.size_bytes:
                context.set_trailing_metadata(((SHARED_KEY, str(block.put(packed))),))
                metrics.shared_bytes.labels("sent").inc(size_bytes)
                packed = []
        joined = b"".join(packed)
        ended = time.perf_counter()
        pack_seconds.observe(unpacked - started + ended - answered)
        trace = ""
        if rooms.tracing.is_on:
            parts = _parts((started, unpacked, answered, ended), reply)
            trace = rooms.tracing.served(context.invocation_metadata(), method.name, parts)
        call_seconds.observe(ended - started, {"trace_id": trace} if trace else None)
        return joined

    return _failures_told(answer, method.name, rooms.tracing) if rooms.tracing.is_on else answer


def _parts(moments: tuple[float, float, float, float], reply: Any) -> list[Part]:
    """What was done in a call, begun, unpacked, answered and packed at these moments.

    What the engine did is known of calls whose reply tells how long they waited; the compute of a batch is that of all in it.
    """
    started, unpacked, answered, ended = moments
    begun = min(answered, unpacked + getattr(reply, "queue_s", 0.0))
    engine = [("queue", unpacked, begun), ("compute", begun, answered)]
    work = engine if hasattr(reply, "queue_s") else [("work", unpacked, answered)]
    return [("unpack", started, unpacked), *work, ("pack", answered, ended)]


def _failures_told(
    answer: Callable[[bytes, grpc.ServicerContext], bytes], method: str, tracing: Tracing
) -> Callable[[bytes, grpc.ServicerContext], bytes]:
    """A behaviour whose failures make spans, too."""

    def told(data: bytes, context: grpc.ServicerContext) -> bytes:
        started = time.perf_counter()
        try:
            return answer(data, context)
        except Exception as error:
            tracing.served(
                context.invocation_metadata(), method, [("refused", started, time.perf_counter())], typed(error, method)
            )
            raise

    return told


def _describe(rooms: _Rooms) -> Callable[[verbs.DescribeRequest, Call], verbs.DescribeReply]:
    """The card, and on it a ticket for shared memory that is this caller's own."""

    def describe(request: verbs.DescribeRequest, call: Call) -> verbs.DescribeReply:
        card = rooms.actor.describe(request, call)
        return dataclasses.replace(card, same_host=rooms.same_host.ticket(call.identity))

    return describe


def _session_of(message: Any, identity: str, actor: TeacherActor) -> Session | None:
    """The live session that a request or reply names, if it is this caller's own."""
    ref = getattr(message, "session", None)
    session = actor.sessions.peek(ref.session_id) if ref is not None else None
    return session if session is not None and session.owner == identity else None


def _told(method: str, verb: Callable[[Any, Call], Any], request: Any, call: Call, actor: TeacherActor) -> Any:
    """The verb's reply; the log says how the call ended, and whose it was."""
    session = actor.sessions.peek(request.session.session_id) if hasattr(request, "session") else None
    student, step = (session.student, session.step) if session else (getattr(request, "student", ""), None)
    try:
        reply = verb(request, call)
    except Exception as error:
        known = typed(error, method)
        facts = facts_of(method, request, call.identity, student, step)
        _log.info("%s: %s: %s", method, type(known).__name__, known, extra=facts)
        raise known from error
    level = logging.INFO if method in ("Enroll", "Leave") else logging.DEBUG
    if _log.isEnabledFor(level):
        _log.log(level, "%s: done", method, extra=facts_of(method, request, call.identity, student, step))
    return reply


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
    data: bytes, context: grpc.ServicerContext, rooms: _Rooms, identity: str
) -> tuple[Block | None, bytes | memoryview]:
    """The block that came with a call, if any, and the request: out of the block, or the call's own bytes."""
    named = next((value for key, value in context.invocation_metadata() if key == SHARED_KEY), None)
    if named is None:
        return None, data
    place, limit_bytes = Place.parse(str(named)), rooms.live.now.message_bytes
    block = rooms.same_host.find(place, identity)
    if place.size_bytes > limit_bytes:
        raise MessageTooLarge(
            f"the request is {place.size_bytes} bytes, the limit is {limit_bytes}; send fewer rows or tokens"
        )
    return block, block.take(place.size_bytes)


def _call(context: grpc.ServicerContext, identity: str) -> Call:
    remaining = context.time_remaining()
    cancelled = threading.Event()
    context.add_callback(cancelled.set)
    # gRPC gives a call without a deadline an absurdly far one
    deadline = time.monotonic() + remaining if remaining is not None and remaining < 1e8 else None
    return Call(deadline, cancelled, identity)
