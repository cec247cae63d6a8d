"""What a running server says to the standard health service; knows no session."""

from __future__ import annotations

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from teaching_protocol.diagnosis.findings import Finding
from teaching_protocol.wire import SERVICE

__all__ = ["check_health"]


def check_health(channel: grpc.Channel, limit_s: float) -> Finding:
    """Whether orchestrators are told that it serves."""
    request = health_pb2.HealthCheckRequest(service=SERVICE)
    try:
        answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=limit_s)
    except grpc.RpcError as failure:
        code = failure.code().name
        advice = "probes of Kubernetes and load balancers need it: let grpc.health.v1 through the proxy before it"
        return Finding("health", "fail", f"grpc.health.v1 answers {code}", advice, {"status": code})
    named = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
    if named != "SERVING":
        advice = "it is warming up or draining: wait, or see its log"
        return Finding("health", "warn", f"it says {named}", advice, {"status": named})
    return Finding("health", "ok", "it says SERVING", "", {"status": named})
