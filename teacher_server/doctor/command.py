"""The command `teacher-server doctor`: flags to a round of checks, findings to a table and an exit code."""

from __future__ import annotations

import signal
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer

from command_config.completion import complete_names
from command_config.line import Json
from teacher_server.config import PACKAGED
from teacher_server.flags import Ca, Cert, ConfigFile, Device, Dtype, Key

__all__ = ["doctor"]


def doctor(
    address: Annotated[
        str | None, typer.Argument(help="HOST:PORT of a running server; without it, this machine.")
    ] = None,
    config: ConfigFile = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Model to load and compare with, as given to serve.", autocompletion=complete_names(PACKAGED)
        ),
    ] = None,
    dtype: Dtype = None,
    device: Device = None,
    port: Annotated[int | None, typer.Option(help="gRPC port, as given to serve.")] = None,
    metrics_port: Annotated[int | None, typer.Option(help="Prometheus port, as given to serve.")] = None,
    threads: Annotated[int | None, typer.Option(help="Compute threads, as given to serve.")] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="PEM file of the server's certificate.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM file of its key.")] = None,
    tokens: Annotated[Path | None, typer.Option(help="Token file, as given to serve.")] = None,
    limit_s: Annotated[float, typer.Option(min=0.5, help="Seconds one check may take; loading a model, 600.")] = 30.0,
    as_json: Json = False,
    ca: Ca = None,
    cert: Cert = None,
    key: Key = None,
) -> None:
    """Measures this machine, or a running server, and says what to change; exit code 0 well, 1 a failure, 2 not reached, 3 warnings."""
    # imported here: help and completion need no torch
    from transformers.utils import logging as transformers_logging

    from teacher_server.describing import other_teacher
    from teacher_server.doctor import settings
    from teacher_server.doctor.checks import machine_checks, running_checks
    from teaching_protocol.channel import split_address
    from teaching_protocol.diagnosis.connection import Door
    from teaching_protocol.diagnosis.rounds import run_checks
    from teaching_protocol.diagnosis.table import show

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that sessions are left
    transformers_logging.disable_progress_bar()
    flags: dict[str, Any] = {
        "model": model,
        "dtype": dtype,
        "device": device,
        "port": port,
        "metrics_port": metrics_port,
    }
    flags |= {"threads": threads, "tls_cert": tls_cert, "tls_key": tls_key, "tokens": tokens}
    with ExitStack() as stack:
        if address is None:
            checks = machine_checks(config, flags, limit_s)
        else:
            split_address(address)
            other = stack.enter_context(other_teacher(address, ca, cert, key))
            door = Door(address, ca is not None, ca, cert, key)
            checks = running_checks(door, other, settings.configured(config, flags), model, limit_s)
        try:
            code = show("teacher-server doctor", address or "this machine", run_checks(checks, limit_s), as_json)
        except KeyboardInterrupt:
            raise typer.Exit(128 + signal.SIGINT) from None
    raise typer.Exit(int(code))
