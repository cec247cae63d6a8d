"""The standard health service: SERVING once the engine answered a warm-up, until the drain begins."""

from __future__ import annotations

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from teaching_protocol.wire import SERVICE

__all__ = ["Health"]


class Health:
    """Tells probes whether the teacher answers, for the server as a whole and by service name.

    Attributes:
        serving: what they are told.
    """

    def __init__(self) -> None:
        self._servicer = health.HealthServicer()
        self.set(serving=False)

    def add_to(self, server: grpc.Server) -> None:
        """Registers the health service on a server."""
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, server)

    def set(self, *, serving: bool) -> None:
        """Changes the answer for everybody who asks or watches."""
        self.serving = serving
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in ("", SERVICE):
            self._servicer.set(name, status)
