"""The command `student-client select`: flags to a configuration and a selector trained for it; trains nothing itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from command_config.line import Json
from student_client.flags import (
    Ca,
    Cert,
    ConfigFile,
    DataFlag,
    Key,
    LabelColumn,
    Labelled,
    MaxSteps,
    Quiet,
    Seed,
    Settings,
    Size,
    TeacherFlag,
    TextColumn,
    Threads,
    TokenFile,
    Unlabelled,
    read_config,
    run_fields,
)

__all__ = ["select"]


def select(
    output: Annotated[Path, typer.Option(help="Folder of the selector.")],
    episodes: Annotated[
        int, typer.Option(min=1, help="Students to train one after the other, each from its start.")
    ] = 10,
    config: ConfigFile = None,
    data: DataFlag = None,
    text_column: TextColumn = None,
    label_column: LabelColumn = None,
    labelled: Labelled = None,
    unlabelled: Unlabelled = None,
    teacher: TeacherFlag = None,
    ca: Ca = None,
    cert: Cert = None,
    key: Key = None,
    token_file: TokenFile = None,
    size: Size = None,
    seed: Seed = None,
    max_steps: MaxSteps = None,
    threads: Threads = None,
    settings: Settings = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the selector that the output folder holds.")
    ] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Trains a selector of knowledge over episodes, for `train --method selection`; Ctrl-C keeps the finished ones'."""
    fields = run_fields(
        data=data,
        text_column=text_column,
        label_column=label_column,
        labelled=labelled,
        unlabelled=unlabelled,
        teacher=teacher,
        size=size,
        seed=seed,
        max_steps=max_steps,
        ca=ca,
        cert=cert,
        key=key,
        token_file=token_file,
        threads=threads,
    )
    from student_client.reporting.progress import Progress  # here: help and completion need no torch
    from student_client.selection.episodes import train_selector

    wanted = read_config(config, fields | {"output": output}, settings)
    done = train_selector(wanted, episodes, overwrite=overwrite, progress=Progress("selector", quiet=quiet or as_json))
    if as_json:
        typer.echo(json.dumps({"output": str(output), "episodes": done.episodes, "of": episodes}))
        raise typer.Exit(128 + done.signal if done.signal else 0)
    if done.episodes:
        typer.echo(
            f"selector of {done.episodes} episodes in {output}; train a student with it by: student-client train "
            f"--method selection --set method.selection.selector={output} and the other flags of this command"
        )
    if done.signal:
        typer.echo(f"ended in episode {done.episodes + 1} of {episodes}, whose learning is not kept")
        raise typer.Exit(128 + done.signal)
