"""Which checks the student's doctor makes, in which order, and what they need of each other."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from student_client.doctor.agreement import check_compression, check_repeatability, check_strangers
from student_client.doctor.reaching import check_credentials, check_session
from student_client.doctor.same_model import check_model
from student_client.doctor.visit import Visit
from student_client.doctor.wire import check_bandwidth, check_shared_memory
from teaching_protocol.diagnosis import machine
from teaching_protocol.diagnosis.connection import check_connection
from teaching_protocol.diagnosis.findings import CONNECTION
from teaching_protocol.diagnosis.gradients import check_codec_gradient, check_gradient
from teaching_protocol.diagnosis.reaching import check_card, check_clock, check_latency
from teaching_protocol.diagnosis.rounds import Check
from teaching_protocol.diagnosis.trust import check_tls

__all__ = ["checks_of"]


def checks_of(visit: Visit, model: str | None) -> Sequence[Check]:
    """All checks of a teacher, in the order in which they are made."""
    probe = ("session",)
    checks = [
        Check("versions", partial(machine.check_versions, ("transformers",))),
        Check("device", machine.check_device),
        Check("memory", machine.check_memory),
        Check("threads", machine.check_threads),
        Check("malloc", machine.check_malloc),
        Check("credentials", partial(check_credentials, visit)),
        Check(CONNECTION, lambda: check_connection(visit.door, visit.limit_s)),
        Check("tls", lambda: check_tls(visit.door, visit.limit_s), ("credentials", CONNECTION)),
        Check("teacher", lambda: check_card(visit.transport, visit.call_s, visit.take), ("tls",)),
        Check(
            "clock", lambda: check_clock(visit.transport, lambda: visit.transport.clock_s, visit.call_s), ("teacher",)
        ),
        Check("latency", lambda: check_latency(visit.transport, visit.call_s), ("teacher",)),
        Check("session", partial(check_session, visit), ("teacher",)),
        Check("gradient", lambda: check_gradient(visit.probe, visit.card.dtype), probe),
        Check("codec_gradient", lambda: check_codec_gradient(visit.probe, visit.card.dtype), probe),
        Check("repeatability", partial(check_repeatability, visit), probe),
        Check("strangers", partial(check_strangers, visit), probe),
        Check("compression", partial(check_compression, visit), probe),
        Check("bandwidth", partial(check_bandwidth, visit), probe),
        Check("shared_memory", partial(check_shared_memory, visit), probe),
    ]
    if model is not None:
        checks.append(Check("model", partial(check_model, visit, model), probe))
    return checks
