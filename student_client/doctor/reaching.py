"""Whether the teacher takes this student: its credentials, and a session."""

from __future__ import annotations

import time

from student_client.doctor.visit import Visit
from teaching_protocol import verbs
from teaching_protocol.diagnosis.findings import Finding, Value
from teaching_protocol.verbs import Call

__all__ = ["check_credentials", "check_session"]

_SHORT_LEASE_S = 10.0


def check_credentials(visit: Visit) -> Finding:
    """Files and token as a student reads them; no secret is shown."""
    given = visit.credentials
    token = given.token()  # raises what is wrong with the file
    visit.door.context(verified=True)
    visit.connect()  # raises where a token would travel readable
    source = f"from {given.token_file}" if given.token_file else "from TEACHER_TOKEN"
    said = [f"a token {source}" if token else "no token", f"CA {given.ca}" if given.ca else "no CA of one's own"]
    said.append(f"certificate {given.cert}" if given.cert else "no certificate")
    values: dict[str, Value] = {"token": bool(token), "ca": given.ca is not None, "certificate": given.cert is not None}
    return Finding("credentials", "ok", ", ".join(said), "", values)


def check_session(visit: Visit) -> Finding:
    """Whether a session is given, small and under a name that says whose it is."""
    began = time.monotonic()
    probe = visit.enroll("probe")
    visit.transport.renew(verbs.RenewRequest(probe.ref), Call(time.monotonic() + visit.call_s))
    took_ms = 1e3 * (time.monotonic() - began)
    limits = visit.card.limits
    values: dict[str, Value] = {
        "student": probe.name,
        "parameters": probe.parameters,
        "enroll_ms": round(took_ms, 3),
        "lease_s": limits.lease_s,
    }
    measured = f"opened as {probe.name} in {took_ms:.0f} ms, a codec of {probe.parameters:,} parameters"
    if limits.lease_s < _SHORT_LEASE_S:
        advice = "raise lease_s of the server: a student that pauses for seconds would lose its session"
        return Finding("session", "warn", f"{measured}; its lease is {limits.lease_s:g} s", advice, values)
    return Finding("session", "ok", measured, "", values)
