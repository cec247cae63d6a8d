"""The command `teacher-server`: reads flags and prints; what serves or computes is imported when it is asked for."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from command_config import as_json as config_as_json
from command_config import as_table, setting
from command_config.line import Json, add_commands, run_line
from teacher_server.config import ServerConfig, effective_config
from teacher_server.doctor.command import doctor
from teacher_server.examples import EXAMPLES
from teacher_server.finetuning.command import finetune
from teacher_server.flags import (
    Ca,
    Cert,
    Channelz,
    ConfigFile,
    Deterministic,
    Device,
    DeviceMap,
    DeviceMemory,
    Dtype,
    Entry,
    Exit,
    Host,
    Insecure,
    Key,
    Linger,
    LogJson,
    MetricsHost,
    MetricsPort,
    Model,
    OffloadFolder,
    Port,
    Reflection,
    Settings,
    SharedMemory,
    TensorParallel,
    Tokens,
)
from teacher_server.fleet.command import fleet, replace
from teacher_server.plan.command import plan
from teacher_server.security.command import tokens

if TYPE_CHECKING:
    from teacher_server.app import TeacherApp

__all__ = ["app", "main"]

app = typer.Typer(
    no_args_is_help=True,
    help="Serves one frozen teacher to many students.",
    pretty_exceptions_enable=False,
)

app.add_typer(tokens, name="token")


def serve(
    model: Model = None,
    config: ConfigFile = None,
    entry: Entry = None,
    exit: Exit = None,
    image_size: Annotated[int | None, typer.Option(help="Side of a convolutional teacher's images, in pixels.")] = None,
    dtype: Dtype = None,
    device: Device = None,
    device_map: DeviceMap = None,
    device_memory: DeviceMemory = None,
    offload_folder: OffloadFolder = None,
    tensor_parallel: TensorParallel = None,
    host: Host = None,
    port: Port = None,
    metrics_host: MetricsHost = None,
    metrics_port: MetricsPort = None,
    threads: Annotated[int | None, typer.Option(help="Compute threads; torch's choice by default.")] = None,
    deterministic: Deterministic = None,
    compile: Annotated[
        bool | None, typer.Option("--compile", help="Compile the teacher's layers before serving (minutes).")
    ] = None,
    shared_memory: SharedMemory = None,
    linger: Linger = None,
    tls_cert: Annotated[Path | None, typer.Option(help="PEM file of the server's certificate; turns TLS on.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM file of its key.")] = None,
    client_ca: Annotated[
        Path | None, typer.Option(help="PEM file of the CA that clients' certificates come from.")
    ] = None,
    revoked_certs: Annotated[
        Path | None, typer.Option(help="File of clients' certificates that are let in no more, by fingerprint.")
    ] = None,
    tokens: Tokens = None,
    insecure: Insecure = None,
    reflection: Reflection = None,
    channelz: Channelz = None,
    trust_remote_code: Annotated[
        bool | None, typer.Option("--trust-remote-code", help="Run Python code that the model brings.")
    ] = None,
    log_json: LogJson = None,
    settings: Settings = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print where it serves as one JSON object, once it does.")
    ] = False,
) -> None:
    """Serves a teacher until SIGTERM or Ctrl-C, which drain it; SIGHUP reads the configuration again."""
    flags = dict(locals())
    # imported here: help and completion need no torch
    import torch

    from teacher_server.logs import start_log

    path, as_json = flags.pop("config"), flags.pop("as_json")
    flags |= {"device_memory": device_memory or None} | _given(flags.pop("settings"))
    found = effective_config(path, os.environ, flags).config
    start_log(found.log_json, found.log_level)
    flags["threads"] = found.threads or max(1, torch.get_num_threads() // found.tensor_parallel)
    torch.set_num_threads(1)  # this thread's own: the engine's is the only team of threads, see `side_threads`
    _serve(lambda: effective_config(path, os.environ, flags).config, as_json)


def _serve(read: Callable[[], ServerConfig], as_json: bool) -> None:
    from transformers.utils import logging as transformers_logging

    from teacher_server.app import TeacherApp

    transformers_logging.disable_progress_bar()
    server = TeacherApp(read())
    server.reloading(read)

    def stop(signum: int, frame: Any) -> None:
        signal.signal(signum, lambda *_: os._exit(1))
        server.ask_to_drain()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGHUP, lambda *_: server.ask_to_reload())
    with server:
        # one line for whoever started this process: where it serves
        address = f"{server.config.host}:{server.port}"
        metrics = f"{server.config.metrics_host}:{server.metrics_port}"
        places = {"serving": address, "metrics": metrics}
        typer.echo(json.dumps(places) if as_json else f"serving {address} metrics {metrics}")
        sys.stdout.flush()
        if server.config.ends_with_input:
            threading.Thread(target=_drain_at_end_of_input, args=(server,), name="input", daemon=True).start()
        server.wait()


def _drain_at_end_of_input(server: TeacherApp) -> None:
    """Whoever started the server held the other end; it is closed when they end, however they end."""
    while os.read(sys.stdin.fileno(), 4096):
        pass
    server.ask_to_drain()


def check_config(
    config: Annotated[
        Path | None, typer.Argument(help="YAML or TOML file; none for environment and flags alone.")
    ] = None,
    model: Model = None,
    settings: Settings = None,
    as_json: Json = False,
) -> None:
    """Checks a configuration and prints every value and where it came from; secrets are masked."""
    found = effective_config(config, os.environ, {"model": model, **_given(settings)})
    if as_json:
        typer.echo(config_as_json(found))
    else:
        Console().print(as_table(found, f"{config or 'the configuration'} is good"))


def _given(settings: list[str] | None) -> dict[str, Any]:
    return dict(setting(each, "permits=512") for each in settings or ())


def describe(
    address: Annotated[str, typer.Argument(help="host:port of a teacher server.")],
    timeout_s: Annotated[float, typer.Option(min=0.001, help="Seconds to wait for the answer.")] = 10.0,
    ca: Ca = None,
    cert: Cert = None,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Prints the card of the teacher at ADDRESS; a token is taken from the variable TEACHER_TOKEN."""
    from teacher_server.describing import ask_for_card

    card = ask_for_card(address, timeout_s, ca, cert, key)
    if as_json:
        shown = {name: value for name, value in asdict(card).items() if name != "same_host"}  # of this connection alone
        typer.echo(json.dumps(shown, indent=1))
        return
    table = Table(title=f"teacher at {address}")
    table.add_column("field")
    table.add_column("value", overflow="fold")
    for name in card.__dataclass_fields__:
        value = getattr(card, name)
        table.add_row(name, ", ".join(map(str, value)) if isinstance(value, tuple) else str(value))
    Console().print(table)


add_commands(
    app,
    {
        "serve": serve,
        "check-config": check_config,
        "describe": describe,
        "finetune": finetune,
        "plan": plan,
        "doctor": doctor,
        "fleet": fleet,
        "replace": replace,
    },
    EXAMPLES,
)


def main() -> None:
    """Runs the command; an error of the tree is one line, not a stack trace."""
    run_line("teacher-server", app)


if __name__ == "__main__":
    main()
