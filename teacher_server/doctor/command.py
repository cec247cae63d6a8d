"""The command `teacher-server doctor`: which checks are made of this machine, of a model, of a running server."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from transformers.utils import logging as transformers_logging

from teacher_server.config import ServerConfig
from teacher_server.describing import OtherTeacher, other_teacher
from teacher_server.doctor import settings
from teacher_server.doctor.model import ModelBench
from teacher_server.doctor.server import check_health
from teaching_protocol.diagnosis import machine
from teaching_protocol.diagnosis.connection import Door, check_connection, split_address
from teaching_protocol.diagnosis.findings import CONNECTION
from teaching_protocol.diagnosis.reaching import check_card, check_clock, check_latency
from teaching_protocol.diagnosis.rounds import Check, run_checks
from teaching_protocol.diagnosis.table import show
from teaching_protocol.diagnosis.trust import check_tls
from teaching_protocol.errors import ConfigError
from teaching_protocol.verbs import TeacherVerbs

__all__ = ["doctor"]

_PACKAGES = ("transformers", "tokenizers", "accelerate", "grpcio-health-checking", "prometheus-client")
_CALL_S, _MODEL_S = 10.0, 600.0


def doctor(
    address: Annotated[
        str | None, typer.Argument(help="HOST:PORT of a running server; without it, this machine.")
    ] = None,
    config: Annotated[Path | None, typer.Option("--config", help="YAML or TOML file, as given to serve.")] = None,
    model: Annotated[str | None, typer.Option(help="Model to load and compare with, as given to serve.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = None,
    port: Annotated[int | None, typer.Option(help="gRPC port, as given to serve.")] = None,
    metrics_port: Annotated[int | None, typer.Option(help="Prometheus port, as given to serve.")] = None,
    threads: Annotated[int | None, typer.Option(help="Compute threads, as given to serve.")] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="PEM file of the server's certificate.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM file of its key.")] = None,
    tokens: Annotated[Path | None, typer.Option(help="Token file, as given to serve.")] = None,
    limit_s: Annotated[float, typer.Option(min=0.5, help="Seconds one check may take; loading a model, 600.")] = 30.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
    ca: Annotated[Path | None, typer.Option(help="PEM file of the CA of the server at ADDRESS; turns TLS on.")] = None,
    cert: Annotated[Path | None, typer.Option(help="PEM file of your own certificate, if it asks for one.")] = None,
    key: Annotated[Path | None, typer.Option(help="PEM file of its key.")] = None,
) -> None:
    """Measures this machine, or a running server, and says what to change; exit code 0 well, 1 a failure, 2 not reached, 3 warnings."""
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
            checks = _machine(config, flags, limit_s)
        else:
            split_address(address)
            other = stack.enter_context(other_teacher(address, ca, cert, key))
            door = Door(address, ca is not None, ca, cert, key)
            checks = _running(door, other, settings.configured(config, flags), model, limit_s)
        try:
            code = show("teacher-server doctor", address or "this machine", run_checks(checks, limit_s), as_json)
        except KeyboardInterrupt:
            raise typer.Exit(128 + signal.SIGINT) from None
    raise typer.Exit(int(code))


def _machine(path: Path | None, flags: dict[str, Any], limit_s: float) -> Sequence[Check]:
    """This machine as a teacher's; with a configuration that cannot be used, as far as it goes without."""
    try:
        config = settings.configured(path, flags)
        wrong = None
    except ConfigError as error:
        config, wrong = ServerConfig.model_validate({"model": "none"}), error
    needs = ("config",)
    checks = [
        Check("versions", partial(machine.check_versions, _PACKAGES)),
        Check("device", partial(machine.check_device, config.device)),
        Check("memory", partial(settings.check_room, config), ("device",)),
        Check("threads", partial(machine.check_threads, config.threads)),
        Check("malloc", machine.check_malloc),
        Check("shared_memory", machine.check_shared_blocks),
        Check("limits", partial(machine.check_limits, settings.descriptors(config))),
        Check("config", partial(_config, path, config, wrong)),
        Check("ports", partial(settings.check_ports, config)),
        Check("tokens", partial(settings.check_tokens, config), needs if wrong else ()),
        Check("certificate", partial(settings.check_certificate, config), needs if wrong else ()),
    ]
    if wrong is None and config.model != "none":
        bench = ModelBench(config, min(_CALL_S, limit_s))
        loaded, limit = ("model",), max(limit_s, _MODEL_S)
        checks += [
            Check("model", bench.check_load, ("device",), limit),
            Check("local_remote", bench.check_served, loaded, limit),
            Check("gradient", bench.check_gradient, loaded, limit),
            Check("codec_gradient", bench.check_codec_gradient, loaded, limit),
        ]
    return checks


def _running(
    door: Door, other: OtherTeacher, config: ServerConfig, model: str | None, limit_s: float
) -> Sequence[Check]:
    """A server at an address; with a model, that against it."""
    call_s = min(_CALL_S, limit_s)
    teacher = cast(TeacherVerbs, other)
    checks = [
        Check("versions", partial(machine.check_versions, _PACKAGES)),
        Check(CONNECTION, partial(check_connection, door, limit_s)),
        Check("tls", partial(check_tls, door, limit_s), (CONNECTION,)),
        Check("teacher", partial(check_card, teacher, call_s, lambda card: None), ("tls",)),
        Check("health", partial(check_health, other.channel, call_s), ("tls",)),
        Check("clock", partial(check_clock, teacher, lambda: other.clock_s, call_s), ("teacher",)),
        Check("latency", partial(check_latency, teacher, call_s), ("teacher",)),
    ]
    if model is not None:
        bench, limit = ModelBench(config, call_s), max(limit_s, _MODEL_S)
        checks += [
            Check("model", bench.check_load, ("teacher",), limit),
            Check("local_remote", partial(bench.check_other, teacher), ("teacher", "model"), limit),
        ]
    return checks


def _config(path: Path | None, config: ServerConfig, wrong: ConfigError | None) -> Any:
    if wrong is not None:
        raise wrong
    return settings.check_config(path, config)
