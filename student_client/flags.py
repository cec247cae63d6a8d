"""The flags that several commands share, and the configuration they come to; runs nothing."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from command_config import Effective, setting
from command_config.completion import complete_fields, complete_listed, complete_names
from student_client.config import RunConfig, effective_run_config
from student_client.method_config import MethodName
from task_data.config import DataName
from task_data.flags import data_fields

__all__ = [
    "Ca",
    "Cert",
    "Complementary",
    "ConfigFile",
    "DataFlag",
    "Key",
    "LabelColumn",
    "Labelled",
    "MaxSteps",
    "MethodFlag",
    "Output",
    "Overwrite",
    "Quiet",
    "Restartable",
    "Resume",
    "Seed",
    "Settings",
    "Size",
    "TeacherFlag",
    "TextColumn",
    "Threads",
    "TokenFile",
    "Unlabelled",
    "addresses",
    "effective",
    "read_config",
    "run_fields",
    "settings_of",
]

ConfigFile = Annotated[Path | None, typer.Option(help="YAML or TOML file of settings; flags override it.")]
DataFlag = Annotated[
    str | None,
    typer.Option(
        help="Data set by name, or a CSV, JSONL or Parquet file of yours.",
        autocompletion=complete_names(get_args(DataName)),
    ),
]
TextColumn = Annotated[str | None, typer.Option(help="Column of your file that holds the text.")]
LabelColumn = Annotated[str | None, typer.Option(help="Column of your file that holds the label.")]
Labelled = Annotated[int | None, typer.Option(help="Training rows that keep their label.")]
Unlabelled = Annotated[int | None, typer.Option(help="Further training rows, used without their label.")]
TeacherFlag = Annotated[
    str | None,
    typer.Option(help="HOST:PORT of the teacher server; further addresses of the same teacher after commas."),
]
Ca = Annotated[Path | None, typer.Option(help="PEM file of the CA of the teacher's certificate; turns TLS on.")]
Cert = Annotated[Path | None, typer.Option(help="PEM file of your own certificate, if the teacher asks for one.")]
Key = Annotated[Path | None, typer.Option(help="PEM file of its key.")]
TokenFile = Annotated[
    Path | None, typer.Option(help="File with your token, mode 600; without it the variable TEACHER_TOKEN is read.")
]
Complementary = Annotated[
    list[str] | None, typer.Option(help="Address of a further teacher of a committee; may be repeated.")
]
Size = Annotated[
    str | None,
    typer.Option(
        help="Size of the student: tiny, small (the default) or complementary.",
        autocompletion=complete_names(("tiny", "small", "complementary")),
    ),
]
MethodFlag = Annotated[
    str | None,
    typer.Option(
        help=f"One of {', '.join(get_args(MethodName))}, or several with commas; talking by default.",
        autocompletion=complete_listed(get_args(MethodName)),
    ),
]
Output = Annotated[Path | None, typer.Option(help="Folder of the run.")]
Seed = Annotated[int | None, typer.Option(help="Seed of student, codecs and order; the splits keep data.seed.")]
MaxSteps = Annotated[
    int | None, typer.Option(help="Optimizer steps; without it `training.epochs` passes over the rows.")
]
Threads = Annotated[int | None, typer.Option(help="Compute threads of the student; torch's choice by default.")]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set", help="Any setting, as training.lr=1e-3; may be repeated.", autocompletion=complete_fields(RunConfig)
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", help="Show no progress, only the result.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue from the newest checkpoint of the output folder.")]
Restartable = Annotated[
    bool,
    typer.Option(
        "--restartable", help="--resume if there is a checkpoint, else begin: for jobs that are started again."
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the run that the output folder holds.")]


def run_fields(
    *,
    data: str | None,
    text_column: str | None,
    label_column: str | None,
    labelled: int | None,
    unlabelled: int | None,
    teacher: str | None,
    size: str | None,
    seed: int | None,
    max_steps: int | None,
    ca: Path | None,
    cert: Path | None,
    key: Path | None,
    token_file: Path | None,
    threads: int | None,
) -> dict[str, Any]:
    """Flags by the dotted field they set; None where a flag was not given.

    Raises:
        ConfigError: a data set of no known name, which is no file either.
    """
    return {
        "data.text_column": text_column,
        "data.label_column": label_column,
        "data.labelled": labelled,
        "data.unlabelled": unlabelled,
        **addresses(teacher),
        "teacher.ca": ca,
        "teacher.cert": cert,
        "teacher.key": key,
        "teacher.token_file": token_file,
        "student.size": size,
        "training.max_steps": max_steps,
        "training.threads": threads,
        **dict.fromkeys(("student.seed", "method.seed", "training.seed"), seed),
        **data_fields(data),
    }


def addresses(teacher: str | None) -> dict[str, Any]:
    """`HOST:PORT`, and after commas where else the same teacher serves."""
    first, *others = teacher.split(",") if teacher is not None else [None]
    return {"teacher.address": first, "teacher.addresses": others or None}


def settings_of(settings: Sequence[str] | None) -> dict[str, Any]:
    """Every `--set FIELD=VALUE` by its field.

    Raises:
        ConfigError: one that is no such pair.
    """
    return dict(setting(each, "training.lr=1e-3") for each in settings or ())


def effective(config: Path | None, flags: Mapping[str, Any], settings: Sequence[str] | None) -> Effective[RunConfig]:
    """Defaults, a file, the environment, the flags that were given, and every `--set`, each over those before.

    Raises:
        ConfigError: a file, variable, field or value that cannot be used.
    """
    given = {field: value for field, value in flags.items() if value is not None}
    given |= settings_of(settings)
    return effective_run_config(config, os.environ, given)


def read_config(config: Path | None, flags: Mapping[str, Any], settings: Sequence[str] | None) -> RunConfig:
    """The configuration that `effective` comes to; its errors."""
    return effective(config, flags, settings).config
