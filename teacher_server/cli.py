"""The command `teacher-server`: serve, finetune, check-config, describe; reads flags and prints."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from transformers.utils import logging as transformers_logging

from command_config import as_json as config_as_json
from command_config import as_table, setting
from teacher_server.app import TeacherApp
from teacher_server.config import ServerConfig, effective_config
from teacher_server.describing import ask_for_card
from teacher_server.doctor.command import doctor
from teacher_server.finetuning.command import finetune
from teacher_server.fleet.command import fleet, replace
from teacher_server.logs import start_log
from teacher_server.plan.command import plan
from teacher_server.security.command import tokens
from teaching_protocol.errors import TeachingError

__all__ = ["main"]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Serves one frozen teacher to many students.",
    pretty_exceptions_enable=False,
)

app.add_typer(tokens, name="token")

ConfigFile = Annotated[Path | None, typer.Option("--config", help="YAML or TOML file; flags go before it.")]
Model = Annotated[
    str | None,
    typer.Option(help="Hugging Face model name, a packaged teacher's name, a model folder, or a run folder."),
]

DeviceMap = Annotated[
    str | None,
    typer.Option(help="Spread the weights: auto, balanced, sequential, or a JSON file of modules and devices."),
]
DeviceMemory = Annotated[
    list[str] | None, typer.Option(help="What a device may hold of the weights, 0=20GiB or cpu=60GiB; may be repeated.")
]
OffloadFolder = Annotated[
    Path | None, typer.Option(help="Folder for weights that lie on the disk until they are used.")
]
SharedMemory = Annotated[
    bool | None,
    typer.Option(
        "--shared-memory/--no-shared-memory", help="Large messages of students on this host through shared memory."
    ),
]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="Any field, as permits=512; may be repeated; goes before other flags.")
]


@app.command()
def serve(
    model: Model = None,
    config: ConfigFile = None,
    entry: Annotated[int | None, typer.Option(help="Default layer where a message enters.")] = None,
    exit: Annotated[int | None, typer.Option(help="Default layer where the answer is read.")] = None,
    image_size: Annotated[int | None, typer.Option(help="Side of a convolutional teacher's images, in pixels.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = None,
    device_map: DeviceMap = None,
    device_memory: DeviceMemory = None,
    offload_folder: OffloadFolder = None,
    host: Annotated[str | None, typer.Option(help="Address to bind; loopback unless you say otherwise.")] = None,
    port: Annotated[int | None, typer.Option(help="gRPC port; 0 takes a free one.")] = None,
    metrics_host: Annotated[
        str | None, typer.Option(help="Address of metrics and status page; loopback by default.")
    ] = None,
    metrics_port: Annotated[int | None, typer.Option(help="Port of metrics and status page; 0 free, -1 none.")] = None,
    threads: Annotated[int | None, typer.Option(help="Compute threads; 0 leaves torch's choice.")] = None,
    deterministic: Annotated[
        bool | None, typer.Option("--deterministic", help="The same bits alone or among many.")
    ] = None,
    compile: Annotated[
        bool | None, typer.Option("--compile", help="Compile the teacher's layers before serving (minutes).")
    ] = None,
    shared_memory: SharedMemory = None,
    linger: Annotated[
        bool | None, typer.Option("--linger/--no-linger", help="Wait briefly for students about to call.")
    ] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="PEM file of the server's certificate; turns TLS on.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM file of its key.")] = None,
    client_ca: Annotated[
        Path | None, typer.Option(help="PEM file of the CA that clients' certificates come from.")
    ] = None,
    revoked_certs: Annotated[
        Path | None, typer.Option(help="File of clients' certificates that are let in no more, by fingerprint.")
    ] = None,
    tokens: Annotated[Path | None, typer.Option(help="Token file, see `token add`; calls need one then.")] = None,
    insecure: Annotated[
        bool | None, typer.Option("--insecure", help="Bind other than loopback without TLS or tokens.")
    ] = None,
    reflection: Annotated[bool | None, typer.Option("--reflection", help="Serve gRPC reflection.")] = None,
    channelz: Annotated[bool | None, typer.Option("--channelz", help="Serve channelz.")] = None,
    trust_remote_code: Annotated[
        bool | None, typer.Option("--trust-remote-code", help="Run Python code that the model brings.")
    ] = None,
    log_json: Annotated[bool | None, typer.Option("--log-json", help="The log as JSON, one object a line.")] = None,
    settings: Settings = None,
) -> None:
    """Serves a teacher until SIGTERM or Ctrl-C, which drain it; SIGHUP reads the configuration again."""
    flags = dict(locals())
    path = flags.pop("config")
    flags["device_memory"] = device_memory or None
    flags |= _given(flags.pop("settings"))
    found = effective_config(path, os.environ, flags).config
    start_log(found.log_json, found.log_level)
    flags["threads"] = found.threads or torch.get_num_threads()
    torch.set_num_threads(1)  # this thread's own: the engine's is the only team of threads, see `side_threads`
    _serve(lambda: effective_config(path, os.environ, flags).config)


def _serve(read: Callable[[], ServerConfig]) -> None:
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
        typer.echo(
            f"serving {server.config.host}:{server.port} metrics {server.config.metrics_host}:{server.metrics_port}"
        )
        sys.stdout.flush()
        if server.config.ends_with_input:
            threading.Thread(target=_drain_at_end_of_input, args=(server,), name="input", daemon=True).start()
        server.wait()


def _drain_at_end_of_input(server: TeacherApp) -> None:
    """Whoever started the server held the other end; it is closed when they end, however they end."""
    while os.read(sys.stdin.fileno(), 4096):
        pass
    server.ask_to_drain()


@app.command("check-config")
def check_config(
    config: Annotated[
        Path | None, typer.Argument(help="YAML or TOML file; none for environment and flags alone.")
    ] = None,
    model: Model = None,
    settings: Settings = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, for programs.")] = False,
) -> None:
    """Checks a configuration and prints what it comes to, each value with who gave it; secrets are masked."""
    found = effective_config(config, os.environ, {"model": model, **_given(settings)})
    if as_json:
        typer.echo(config_as_json(found))
    else:
        Console().print(as_table(found, f"{config or 'the configuration'} is good"))


def _given(settings: list[str] | None) -> dict[str, Any]:
    return dict(setting(each, "permits=512") for each in settings or ())


@app.command()
def describe(
    address: Annotated[str, typer.Argument(help="host:port of a teacher server.")],
    timeout_s: Annotated[float, typer.Option(help="Seconds to wait for the answer.")] = 10.0,
    ca: Annotated[Path | None, typer.Option(help="PEM file of the CA of its certificate; turns TLS on.")] = None,
    cert: Annotated[Path | None, typer.Option(help="PEM file of your own certificate, if it asks for one.")] = None,
    key: Annotated[Path | None, typer.Option(help="PEM file of its key.")] = None,
) -> None:
    """Prints the card of the teacher at ADDRESS; a token is taken from the variable TEACHER_TOKEN."""
    card = ask_for_card(address, timeout_s, ca, cert, key)
    table = Table(title=f"teacher at {address}")
    table.add_column("field")
    table.add_column("value", overflow="fold")
    for name in card.__dataclass_fields__:
        value = getattr(card, name)
        table.add_row(name, ", ".join(map(str, value)) if isinstance(value, tuple) else str(value))
    Console().print(table)


for _command in (finetune, plan, doctor, fleet, replace):
    app.command()(_command)


def main() -> None:
    """Runs the command; an error of the tree is one line, not a stack trace."""
    try:
        app()
    except TeachingError as error:
        typer.secho(f"teacher-server: {error}", fg="red", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
