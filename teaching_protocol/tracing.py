"""Spans of a step across student and teacher, for whoever collects OpenTelemetry; without an endpoint there are none.

The student's step is the root and each of its calls a span below. A call carries its span's id to the teacher (W3C Trace
Context, the metadata key `traceparent`), which puts its own spans under it: unpack, queue, compute, pack. Those are written
down when the call is answered, from times that are taken anyway, so that nothing is done for them while it is under way.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from teaching_protocol.errors import ConfigError

__all__ = ["TRACE_KEY", "Part", "Tracing", "start_tracing"]

TRACE_KEY = "traceparent"
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_UNTRACED = ("Renew",)  # heartbeats belong to no step
_NOTHING: AbstractContextManager[Any] = nullcontext()
_NO_METADATA: AbstractContextManager[Any] = nullcontext(())

Metadata = tuple[tuple[str, str], ...]
Part = tuple[str, float, float]
"""What was done in a call, from when to when, in seconds of `time.perf_counter()`."""


class Tracing:
    """Makes spans, or nothing at all.

    Args:
        provider: OpenTelemetry's, which is shut down by `close`; None makes no span.
    """

    def __init__(self, provider: Any = None) -> None:
        self._provider = provider
        self._tracer: Any = None if provider is None else provider.get_tracer("talking_models")
        self._step: Any = None  # the step's context, for calls in whatever thread

    @property
    def is_on(self) -> bool:
        """Whether there are spans."""
        return self._tracer is not None

    def step(self, number: int) -> AbstractContextManager[None]:
        """The span of a student's step, above all calls that are made inside, in whatever thread."""
        return _NOTHING if self._tracer is None else self._in_step(number)

    def call(self, method: str) -> AbstractContextManager[Metadata]:
        """The span of a call to the teacher; gives the metadata that tell the teacher of it."""
        return _NO_METADATA if self._tracer is None or method in _UNTRACED else self._in_call(method)

    def served(
        self, metadata: Sequence[tuple[str, Any]], method: str, parts: Sequence[Part], error: Exception | None = None
    ) -> str:
        """Writes down a call that the server has just answered.

        Args:
            metadata: that came with it.
            method: its name.
            parts: what was done, in order; the call lasted from the first's begin to the last's end.
            error: how it ended, if not well.

        Returns:
            the trace's id in hexadecimal; empty where none is kept.
        """
        if self._tracer is None or method in _UNTRACED:
            return ""
        from opentelemetry import trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        sent = next((str(value) for key, value in metadata if key == TRACE_KEY), "")
        context = TraceContextTextMapPropagator().extract({TRACE_KEY: sent})
        moments = _Moments()
        kind = trace.SpanKind.SERVER
        span = self._tracer.start_span(f"serve {method}", context, kind, start_time=moments.at(parts[0][1]))
        below = trace.set_span_in_context(span, context)
        for name, begin, end in parts:
            self._tracer.start_span(name, below, start_time=moments.at(begin)).end(moments.at(end))
        _note(span, error)
        span.end(moments.at(parts[-1][2]))
        found = span.get_span_context()
        return format(found.trace_id, "032x") if found.trace_flags.sampled else ""

    def close(self) -> None:
        """Sends what is not sent yet, and ends."""
        if self._provider is not None:
            self._provider.shutdown()

    @contextmanager
    def _in_step(self, number: int) -> Iterator[None]:
        from opentelemetry import trace

        span = self._tracer.start_span("step", attributes={"step": number})
        self._step = trace.set_span_in_context(span)
        try:
            yield
        except Exception as error:
            _note(span, error)
            raise
        finally:
            self._step = None
            span.end()

    @contextmanager
    def _in_call(self, method: str) -> Iterator[Metadata]:
        from opentelemetry import trace

        span = self._tracer.start_span(method, self._step, trace.SpanKind.CLIENT)
        found = span.get_span_context()
        parent = f"00-{found.trace_id:032x}-{found.span_id:016x}-{int(found.trace_flags):02x}"
        try:
            yield ((TRACE_KEY, parent),)
        except Exception as error:
            _note(span, error)
            raise
        finally:
            span.end()


class _Moments:
    """Readings of `time.perf_counter()` as nanoseconds since 1970."""

    def __init__(self) -> None:
        self._start = time.time() - time.perf_counter()

    def at(self, seconds: float) -> int:
        return int((self._start + seconds) * 1e9)


def start_tracing(service: str, endpoint: str = "") -> Tracing:
    """Spans of this process on their way to an OTLP endpoint (gRPC); none where no endpoint is given.

    Args:
        service: what the process is called, unless OTEL_SERVICE_NAME says otherwise.
        endpoint: such as http://127.0.0.1:4317; empty takes OTEL_EXPORTER_OTLP_ENDPOINT, if it is set.

    Raises:
        ConfigError: an endpoint is given and the packages that are needed are not installed.
    """
    if not endpoint and not any(os.environ.get(name) for name in _ENDPOINTS):
        return Tracing()
    try:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"tracing to {endpoint or 'the endpoint of OTEL_EXPORTER_OTLP_ENDPOINT'} needs the package {error.name}; install "
            "it with: pip install 'talking-models[tracing]', or give no endpoint"
        ) from error
    name = os.environ.get("OTEL_SERVICE_NAME") or service
    provider = TracerProvider(resource=Resource.create({"service.name": name}), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint or None)))
    return Tracing(provider)


def _note(span: Any, error: Exception | None) -> None:
    """The class of an error alone: its sentence may tell what is none of the collector's business."""
    if error is not None:
        from opentelemetry.trace import StatusCode

        span.set_status(StatusCode.ERROR, type(error).__name__)
