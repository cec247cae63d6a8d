"""What every call passes on its way in and out: counting, and errors of the tree to gRPC status."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, NoReturn
from urllib.parse import quote

import grpc

from teacher_server.faults import typed
from teacher_server.metrics import Metrics
from teaching_protocol.channel import error_metadata
from teaching_protocol.errors import Overloaded
from teaching_protocol.wire import SERVICE

__all__ = ["ErrorInterceptor"]

_log = logging.getLogger(__name__)

_SENTENCE_BYTES, _END_CHARACTERS = 5000, 200


class ErrorInterceptor(grpc.ServerInterceptor):
    """Maps errors of the tree out; anything else is logged whole and sent as an id."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def intercept_service(self, continuation: Callable[[Any], Any], handler_call_details: Any) -> Any:
        """Wraps the teacher's own methods; standard services pass."""
        handler = continuation(handler_call_details)
        _, service, method = handler_call_details.method.rsplit("/", 2) if handler else ("", "", "")
        if service != SERVICE:
            return handler

        def answer(request: bytes, context: grpc.ServicerContext) -> bytes:
            try:
                reply: bytes = handler.unary_unary(request, context)
            except Exception as error:
                self._abort(error, method, context)
            self._metrics.requests.labels(method, "OK").inc()
            return reply

        return grpc.unary_unary_rpc_method_handler(answer)

    def _abort(self, error: Exception, method: str, context: grpc.ServicerContext) -> NoReturn:
        known = typed(error, method)
        self._metrics.requests.labels(method, known.status).inc()
        self._metrics.rejected.labels(type(known).__name__).inc()
        if isinstance(known, Overloaded):
            _log.warning("%s refused: %s", method, known)
        context.set_trailing_metadata(error_metadata(known))
        context.abort(grpc.StatusCode[known.status], _short(str(known)))
        raise AssertionError("abort raises")


def _short(sentence: str) -> str:
    """Head and tail of a sentence too long for gRPC's 8 KB of metadata, where it travels percent-encoded."""
    if len(quote(sentence)) <= _SENTENCE_BYTES:
        return sentence
    return f"{sentence[:_END_CHARACTERS]} ... {sentence[-_END_CHARACTERS:]}"
