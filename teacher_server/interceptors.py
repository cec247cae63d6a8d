"""What every call passes on its way in and out: counting, and errors of the tree to gRPC status."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable
from typing import Any, NoReturn

import grpc
import torch

from teacher_server.metrics import Metrics
from teaching_protocol.channel import error_metadata
from teaching_protocol.errors import InternalError, OutOfMemory, Overloaded, TeachingError
from teaching_protocol.wire import SERVICE

__all__ = ["ErrorInterceptor"]

_log = logging.getLogger(__name__)

_SENTENCE_CHARACTERS = 1500  # status and sentence must fit into gRPC's 8 KB of metadata


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
        known = _known(error, method)
        self._metrics.requests.labels(method, known.status).inc()
        self._metrics.rejected.labels(type(known).__name__).inc()
        if isinstance(known, Overloaded):
            _log.warning("%s refused: %s", method, known)
        context.set_trailing_metadata(error_metadata(known))
        context.abort(grpc.StatusCode[known.status], str(known)[:_SENTENCE_CHARACTERS])
        raise AssertionError("abort raises")


def _known(error: Exception, method: str) -> TeachingError:
    if isinstance(error, TeachingError):
        return error
    if isinstance(error, torch.OutOfMemoryError):
        return OutOfMemory(
            "the teacher's device has no room for this call; send fewer rows or tokens, or try again later"
        )
    mark = uuid.uuid4().hex[:12]
    _log.error("internal error %s in %s", mark, method, exc_info=error)
    return InternalError(f"internal error {mark}; the server's log has the details under this id")
