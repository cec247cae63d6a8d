"""The command `teacher-server finetune`: flags to a fine-tuned folder, and what it says meanwhile; trains nothing itself."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer
from rich.console import Console

from command_config.completion import complete_fields, complete_names
from command_config.line import Json
from task_data.config import DataName
from task_data.flags import data_fields
from teacher_server.config import PACKAGED
from teacher_server.finetuning.finetune_config import FinetuneConfig, load_finetune_config
from teaching_protocol.errors import ConfigError

if TYPE_CHECKING:
    from teacher_server.finetuning.finetune import Finetuned

__all__ = ["finetune"]


def finetune(
    model: Annotated[
        str,
        typer.Option(
            help="Model to start from: whatever serve takes, but no trained student.",
            autocompletion=complete_names(PACKAGED),
        ),
    ],
    data: Annotated[
        str,
        typer.Option(
            help="Data set by name, or a CSV, JSONL or Parquet file of yours.",
            autocompletion=complete_names(get_args(DataName)),
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the new model, to be served.")],
    train: Annotated[
        str | None,
        typer.Option(help="What learns: head, body or lora.", autocompletion=complete_names(("head", "body", "lora"))),
    ] = None,
    text_column: Annotated[str | None, typer.Option(help="Column of your file that holds the text.")] = None,
    label_column: Annotated[str | None, typer.Option(help="Column of your file that holds the label.")] = None,
    labelled: Annotated[int | None, typer.Option(help="Training rows that have their label: as the students'.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Most passes over them, each learning rate.")] = None,
    lr: Annotated[list[float] | None, typer.Option(help="Peak learning rate to try; may be repeated.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of weights and order; the rows keep data.seed.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="Any field, as data.validation=200; may be repeated.",
            autocompletion=complete_fields(FinetuneConfig),
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the fine-tuned model in OUT.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show no epochs, only the result.")] = False,
    as_json: Json = False,
) -> None:
    """Trains a head, and more on request, on a data set's labelled rows; writes a folder that serve takes."""
    flags: dict[str, Any] = {
        "model": model,
        "output": out,
        "train": train,
        "data.text_column": text_column,
        "data.label_column": label_column,
        "data.labelled": labelled,
        "epochs": epochs,
        "learning_rates": lr or None,
        "seed": seed,
    }
    result = _finetuned(flags | data_fields(data), settings or [], overwrite, quiet or as_json)
    if as_json:
        said = asdict(result) | {"output": str(result.output)}
        typer.echo(json.dumps(said, indent=1))
        return
    typer.echo(
        f"validation {result.metric} {result.best.validation:.4f} (epoch {result.best.epoch}, learning rate "
        f"{result.best.learning_rate:g}, {result.labelled} labelled rows, {result.validation} that chose); serve it: "
        f"teacher-server serve --model {result.output}"
    )


def _finetuned(flags: dict[str, Any], settings: list[str], overwrite: bool, quiet: bool) -> Finetuned:
    # imported here: data sets need packages that serving does not, help and completion need none
    from transformers.utils import logging as transformers_logging

    try:
        from teacher_server.finetuning.finetune import finetune
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"finetune needs the package {error.name}; install it with: pip install 'talking-models[finetune]'"
        ) from error
    transformers_logging.disable_progress_bar()
    console = Console(quiet=quiet, highlight=False)
    config = load_finetune_config(flags, settings)
    return finetune(
        config,
        overwrite,
        lambda each: console.print(
            f"learning rate {each.learning_rate:g}  epoch {each.epoch:>2}  train {each.train:.4f}  "
            f"validation {each.validation:.4f}"
        ),
    )
