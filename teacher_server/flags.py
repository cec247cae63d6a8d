"""The flags that several commands of `teacher-server` share; runs nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from command_config.completion import complete_fields, complete_names
from teacher_server.config import DTYPES, PACKAGED, ServerConfig

__all__ = [
    "Ca",
    "Cert",
    "Channelz",
    "ConfigFile",
    "Deterministic",
    "Device",
    "DeviceMap",
    "DeviceMemory",
    "Dtype",
    "Entry",
    "Exit",
    "Host",
    "Insecure",
    "Key",
    "Linger",
    "LogJson",
    "MetricsHost",
    "MetricsPort",
    "Model",
    "OffloadFolder",
    "Port",
    "Reflection",
    "Settings",
    "SharedMemory",
    "TensorParallel",
    "Tokens",
]

Ca = Annotated[Path | None, typer.Option(help="PEM file of the CA of the server at ADDRESS; turns TLS on.")]
Cert = Annotated[Path | None, typer.Option(help="PEM file of your own certificate, if it asks for one.")]
Key = Annotated[Path | None, typer.Option(help="PEM file of its key.")]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="YAML or TOML file of settings; flags override it.")]
Device = Annotated[
    str | None,
    typer.Option(
        help="auto, cpu, cuda, cuda:1, mps.", autocompletion=complete_names(("auto", "cpu", "cuda", "cuda:1", "mps"))
    ),
]
Deterministic = Annotated[
    bool | None, typer.Option("--deterministic", help="Give a student the same bits alone or among others; slower.")
]
DeviceMap = Annotated[
    str | None,
    typer.Option(
        help="Spread the weights: auto, balanced, sequential, or a JSON file of modules and devices.",
        autocompletion=complete_names(("auto", "balanced", "sequential")),
    ),
]
DeviceMemory = Annotated[
    list[str] | None, typer.Option(help="What a device may hold of the weights, 0=20GiB or cpu=60GiB; may be repeated.")
]
TensorParallel = Annotated[
    int | None, typer.Option(min=1, help="Processes that split every layer's weights, a GPU each if there are any.")
]
OffloadFolder = Annotated[
    Path | None, typer.Option(help="Folder for weights that lie on the disk until they are used.")
]
Dtype = Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.", autocompletion=complete_names(DTYPES))]
Model = Annotated[
    str | None,
    typer.Option(
        help="Hugging Face model name, a packaged teacher's name, a model folder, or a run folder.",
        autocompletion=complete_names(PACKAGED),
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="Any setting, as permits=512; may be repeated; overrides other flags.",
        autocompletion=complete_fields(ServerConfig),
    ),
]
SharedMemory = Annotated[
    bool | None,
    typer.Option(
        "--shared-memory/--no-shared-memory", help="Large messages of students on this host through shared memory."
    ),
]
Linger = Annotated[
    bool | None,
    typer.Option("--linger/--no-linger", help="Wait briefly for students about to call, so that they share a batch."),
]
Entry = Annotated[int | None, typer.Option(help="Layer where a message enters; a third of the way in by default.")]
Exit = Annotated[int | None, typer.Option(help="Layer where the answer is read; the last by default.")]
Host = Annotated[str | None, typer.Option(help="Address of the gRPC port; 127.0.0.1 by default.")]
Port = Annotated[int | None, typer.Option(help="gRPC port, 50051 by default; 0 takes a free one.")]
MetricsHost = Annotated[str | None, typer.Option(help="Address of metrics and status page; 127.0.0.1 by default.")]
MetricsPort = Annotated[
    int | None, typer.Option(help="Their port, 9464 by default; 0 takes a free one, -1 opens none.")
]
Tokens = Annotated[Path | None, typer.Option(help="File of tokens (see `token add`); with it every call needs one.")]
Insecure = Annotated[
    bool | None, typer.Option("--insecure", help="Allow another address than loopback without TLS or tokens.")
]
Reflection = Annotated[bool | None, typer.Option("--reflection", help="Serve gRPC reflection, which lists the RPCs.")]
Channelz = Annotated[bool | None, typer.Option("--channelz", help="Serve channelz, which lists connections.")]
LogJson = Annotated[bool | None, typer.Option("--log-json", help="Write the log as JSON, one object a line.")]
