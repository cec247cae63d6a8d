"""The command `student-client doctor`: which checks are made, in which order, and what they need of each other."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from functools import partial
from typing import Annotated

import typer

from student_client.credentials import Credentials
from student_client.doctor.agreement import check_compression, check_repeatability, check_strangers
from student_client.doctor.reaching import check_credentials, check_session
from student_client.doctor.same_model import check_model
from student_client.doctor.visit import Visit
from student_client.doctor.wire import check_bandwidth, check_shared_memory
from student_client.flags import Ca, Cert, Key, TokenFile
from teaching_protocol.diagnosis import machine
from teaching_protocol.diagnosis.connection import check_connection, split_address
from teaching_protocol.diagnosis.findings import CONNECTION
from teaching_protocol.diagnosis.gradients import check_codec_gradient, check_gradient
from teaching_protocol.diagnosis.reaching import check_card, check_clock, check_latency
from teaching_protocol.diagnosis.rounds import Check, run_checks
from teaching_protocol.diagnosis.table import show
from teaching_protocol.diagnosis.trust import check_tls

__all__ = ["checks_of", "doctor"]


def doctor(
    address: Annotated[str, typer.Argument(help="HOST:PORT of a teacher server.")],
    model: Annotated[
        str | None, typer.Option(help="The served model as this machine has it, to compare states with.")
    ] = None,
    limit_s: Annotated[float, typer.Option(min=0.5, help="Seconds one check may take.")] = 30.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
    ca: Ca = None,
    cert: Cert = None,
    key: Key = None,
    token_file: TokenFile = None,
) -> None:
    """Measures a teacher from here and says what to change; exit code 0 well, 1 a failure, 2 not reached, 3 warnings."""
    split_address(address)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that sessions are left
    credentials = Credentials(ca=ca, cert=cert, key=key, token_file=token_file)
    with Visit(address, credentials, limit_s) as visit:
        findings = run_checks(checks_of(visit, model), limit_s)
        try:
            code = show("student-client doctor", address, findings, as_json)
        except KeyboardInterrupt:
            raise typer.Exit(128 + signal.SIGINT) from None
    raise typer.Exit(int(code))


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
