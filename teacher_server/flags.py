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
    "ConfigFile",
    "Deterministic",
    "Device",
    "DeviceMap",
    "DeviceMemory",
    "Dtype",
    "Key",
    "Linger",
    "Model",
    "OffloadFolder",
    "Settings",
    "SharedMemory",
    "TensorParallel",
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
