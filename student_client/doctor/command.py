"""The command `student-client doctor`: an address to a visit, its findings to a table and an exit code."""

from __future__ import annotations

import signal
import sys
from typing import Annotated

import typer

from command_config.line import Json
from student_client.flags import Ca, Cert, Key, TokenFile

__all__ = ["doctor"]


def doctor(
    address: Annotated[str, typer.Argument(help="HOST:PORT of a teacher server.")],
    model: Annotated[
        str | None, typer.Option(help="The served model as this machine has it, to compare states with.")
    ] = None,
    limit_s: Annotated[float, typer.Option(min=0.5, help="Seconds one check may take.")] = 30.0,
    as_json: Json = False,
    ca: Ca = None,
    cert: Cert = None,
    key: Key = None,
    token_file: TokenFile = None,
) -> None:
    """Measures a teacher from here and says what to change; exit code 0 well, 1 a failure, 2 not reached, 3 warnings."""
    # imported here: help and completion need no torch
    from student_client.connection.credentials import Credentials
    from student_client.doctor.checks import checks_of
    from student_client.doctor.visit import Visit
    from teaching_protocol.channel import split_address
    from teaching_protocol.diagnosis.rounds import run_checks
    from teaching_protocol.diagnosis.table import show

    split_address(address)
    signals = _noted()
    credentials = Credentials(ca=ca, cert=cert, key=key, token_file=token_file)
    with Visit(address, credentials, limit_s) as visit:
        findings = run_checks(checks_of(visit, model), limit_s, lambda: bool(signals))
        code = int(show("student-client doctor", address, findings, as_json))
    raise typer.Exit(128 + signals[0] if signals else code)


def _noted() -> list[int]:
    """SIGINT and SIGTERM as they come; each ends the command by an exception, so that sessions are left.

    The note stays where the exception is lost, as in a callback of a library.
    """
    signals: list[int] = []

    def note(number: int, _: object) -> None:
        signals.append(number)
        sys.exit(128 + number)

    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, note)
    return signals
