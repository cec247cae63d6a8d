"""What every call passes on its way in and out: who calls, the door, counting, and errors of the tree to gRPC status."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any, NoReturn
from urllib.parse import quote

import grpc

from teacher_server.faults import typed
from teacher_server.metrics.metrics import Metrics
from teacher_server.scheduling.threads import CONTROL, CallThreads, on
from teacher_server.security.authority import Authority
from teaching_protocol.channel import error_metadata
from teaching_protocol.directory import DIRECTORY
from teaching_protocol.errors import NonFiniteError, Overloaded, TeachingError
from teaching_protocol.wire import SERVICE

__all__ = ["CallInterceptor"]

_log = logging.getLogger(__name__)

_HEALTH = "grpc.health.v1.Health"
_SENTENCE_BYTES, _END_CHARACTERS = 5000, 200


class CallInterceptor(grpc.ServerInterceptor):
    """Gives each call its threads, and maps errors of the tree out; anything else is logged whole and sent as an id.

    A full server refuses work before it reads it, and so it does with strangers. Health alone asks nobody who they are.

    Args:
        metrics: where calls are counted.
        threads: the pools.
        refusal: why any work is refused now, or None.
        authority: who knows callers.
    """

    def __init__(
        self,
        metrics: Metrics,
        threads: CallThreads,
        refusal: Callable[[], Overloaded | None],
        authority: Authority | None = None,
    ) -> None:
        self._metrics = metrics
        self._threads = threads
        self._refusal = refusal
        self._authority = authority or Authority()

    def intercept_service(self, continuation: Callable[[Any], Any], handler_call_details: Any) -> Any:
        """Wraps the teacher's own methods; of standard services, unary calls count as control and streams pass."""
        handler = continuation(handler_call_details)
        if handler is None:
            return None
        _, service, method = handler_call_details.method.rsplit("/", 2)
        if service not in (SERVICE, DIRECTORY):
            return self._standard(handler, service)
        try:
            is_new = self._authority.needs_hash(handler_call_details.invocation_metadata)
        except TeachingError as error:
            return self._refused(error, method)
        if is_new:
            return self._newcomer(handler.unary_unary, method)
        if method in CONTROL:
            answer = on(self._threads.control, self._answer(handler.unary_unary, method))
            return grpc.unary_unary_rpc_method_handler(answer)
        refusal = self._refusal()
        if refusal is not None:
            return self._refused(refusal, method)
        return grpc.unary_unary_rpc_method_handler(self._answer(handler.unary_unary, method))

    def _refused(self, refusal: TeachingError, method: str) -> Any:
        answer = on(self._threads.refusals, self._answer(_refuse(refusal), method))
        return grpc.stream_unary_rpc_method_handler(answer)  # as if a stream were awaited: the request is not read

    def _newcomer(self, behaviour: Callable[[Any, Any], bytes], method: str) -> Any:
        """A token's first call: its hash takes long, so it waits among its like, and the request is read after it."""

        def answer(requests: Iterator[Any], context: grpc.ServicerContext) -> bytes:
            self._authority.identify(context.invocation_metadata(), context.auth_context)
            return behaviour(next(requests), context)

        return grpc.stream_unary_rpc_method_handler(on(self._threads.newcomers, self._answer(answer, method)))

    def _standard(self, handler: Any, service: str) -> Any:
        """Health for everybody; reflection and channelz, where they are served, for whom the server knows."""
        if handler.unary_unary is not None:
            asked = handler.unary_unary if service == _HEALTH else self._known(handler.unary_unary, service)
            return handler._replace(unary_unary=on(self._threads.control, asked))
        if handler.stream_stream is not None and service != _HEALTH:
            return handler._replace(stream_stream=self._known(handler.stream_stream, service))
        return handler

    def _known(self, behaviour: Callable[[Any, Any], Any], service: str) -> Callable[[Any, Any], Any]:
        def answer(request: Any, context: grpc.ServicerContext) -> Any:
            try:
                self._authority.identify(context.invocation_metadata(), context.auth_context)
            except TeachingError as error:
                self._abort(error, service, context)
            return behaviour(request, context)

        return answer

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
        if isinstance(known, NonFiniteError):
            self._metrics.non_finite.labels(method).inc()
        if isinstance(known, Overloaded):
            _log.warning("%s refused: %s", method, known)
        context.set_trailing_metadata(error_metadata(known))
        context.abort(grpc.StatusCode[known.status], _short(str(known)))
        raise AssertionError("abort raises")


def _refuse(refusal: TeachingError) -> Callable[[Any, Any], bytes]:
    def refuse(request: Any, context: grpc.ServicerContext) -> bytes:
        raise refusal

    return refuse


def _short(sentence: str) -> str:
    """Head and tail of a sentence too long for gRPC's 8 KB of metadata, where it travels percent-encoded."""
    if len(quote(sentence)) <= _SENTENCE_BYTES:
        return sentence
    return f"{sentence[:_END_CHARACTERS]} ... {sentence[-_END_CHARACTERS:]}"
