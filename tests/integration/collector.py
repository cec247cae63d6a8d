"""A collector of OpenTelemetry spans for tests: the real OTLP service over gRPC, which keeps what it is sent."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as messages
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as services

__all__ = ["Collector", "Span"]


@dataclass(frozen=True)
class Span:
    """One span and the service that sent it; ids in hexadecimal, times in nanoseconds."""

    service: str
    name: str
    trace: str
    id: str
    parent: str
    begin: int
    end: int
    error: str
    facts: dict[str, Any] = field(default_factory=dict)


class Collector(services.TraceServiceServicer):
    """Listens on a free port of the loopback. Use as a context manager."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._spans: list[Span] = []
        self._server = grpc.server(ThreadPoolExecutor(4))
        services.add_TraceServiceServicer_to_server(self, self._server)
        self.endpoint = f"http://127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"

    def Export(self, request: Any, context: grpc.ServicerContext) -> Any:
        with self._lock:
            for sent in request.resource_spans:
                facts = {each.key: each.value.string_value for each in sent.resource.attributes}
                for scope in sent.scope_spans:
                    self._spans += [_span(facts["service.name"], each) for each in scope.spans]
        return messages.ExportTraceServiceResponse()

    @property
    def spans(self) -> list[Span]:
        with self._lock:
            return list(self._spans)

    def __enter__(self) -> Collector:
        self._server.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.stop(None).wait()


def _span(service: str, sent: Any) -> Span:
    return Span(
        service,
        sent.name,
        sent.trace_id.hex(),
        sent.span_id.hex(),
        sent.parent_span_id.hex(),
        sent.start_time_unix_nano,
        sent.end_time_unix_nano,
        sent.status.message,
        {each.key: each.value.int_value for each in sent.attributes},
    )
