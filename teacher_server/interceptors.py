"""What every call passes on its way in and out: the door, counting, and errors of the tree to gRPC status."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, NoReturn
from urllib.parse import quote

import grpc

from teacher_server.faults import typed
from teacher_server.metrics import Metrics
from teacher_server.scheduling.threads import CONTROL, CallThreads, on
from teaching_protocol.channel import error_metadata
from teaching_protocol.errors import Overloaded
from teaching_protocol.wire import SERVICE

__all__ = ["CallInterceptor"]

_log = logging.getLogger(__name__)

_SENTENCE_BYTES, _END_CHARACTERS = 5000, 200


class CallInterceptor(grpc.ServerInterceptor):
    """Gives each call its threads, and maps errors of the tree out; anything else is logged whole and sent as an id.

    A full server refuses work before it reads it.

    Args:
        metrics: where calls are counted.
        threads: the pools.
        refusal: why any work is refused now, or None.
    """

    def __init__(self, metrics: Metrics, threads: CallThreads, refusal: Callable[[], Overloaded | None]) -> None:
        self._metrics = metrics
        self._threads = threads
        self._refusal = refusal

    def intercept_service(self, continuation: Callable[[Any], Any], handler_call_details: Any) -> Any:
        """Wraps the teacher's own methods; of standard services, unary calls count as control and streams pass."""
        handler = continuation(handler_call_details)
        if handler is None or handler.unary_unary is None:
            return handler
        _, service, method = handler_call_details.method.rsplit("/", 2)
        if service != SERVICE:
            return handler._replace(unary_unary=on(self._threads.control, handler.unary_unary))
        if method in CONTROL:
            answer = on(self._threads.control, self._answer(handler.unary_unary, method))
            return grpc.unary_unary_rpc_method_handler(answer)
        refusal = self._refusal()
        if refusal is not None:
            answer = on(self._threads.refusals, self._answer(_refuse(refusal), method))
            return grpc.stream_unary_rpc_method_handler(answer)  # as if a stream were awaited: the request is not read
        return grpc.unary_unary_rpc_method_handler(self._answer(handler.unary_unary, method))

    def _answer(self, behaviour: Callable[[Any, Any], bytes], method: str) -> Callable[[Any, Any], bytes]:
        def answer(request: Any, context: grpc.ServicerContext) -> bytes:
            try:
                reply = behaviour(request, context)
            except Exception as error:
                self._abort(error, method, context)
            self._metrics.requests.labels(method, "OK").inc()
            return reply

        return answer

    def _abort(self, error: Exception, method: str, context: grpc.ServicerContext) -> NoReturn:
        known = typed(error, method)
        self._metrics.requests.labels(method, known.status).inc()
        self._metrics.rejected.labels(type(known).__name__).inc()
        if isinstance(known, Overloaded):
            _log.warning("%s refused: %s", method, known)
        context.set_trailing_metadata(error_metadata(known))
        context.abort(grpc.StatusCode[known.status], _short(str(known)))
        raise AssertionError("abort raises")


def _refuse(refusal: Overloaded) -> Callable[[Any, Any], bytes]:
    def refuse(request: Any, context: grpc.ServicerContext) -> bytes:
        raise refusal

    return refuse


def _short(sentence: str) -> str:
    """Head and tail of a sentence too long for gRPC's 8 KB of metadata, where it travels percent-encoded."""
    if len(quote(sentence)) <= _SENTENCE_BYTES:
        return sentence
    return f"{sentence[:_END_CHARACTERS]} ... {sentence[-_END_CHARACTERS:]}"
