"""The command `teacher-server finetune`: flags to a fine-tuned folder, and what it says meanwhile; trains nothing itself."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from transformers.utils import logging as transformers_logging

from teaching_protocol.errors import ConfigError

__all__ = ["finetune"]


def finetune(
    model: Annotated[str, typer.Option(help="Model to start from: whatever serve takes, but no trained student.")],
    data: Annotated[str, typer.Option(help="Data set by name, or a CSV, JSONL or Parquet file of yours.")],
    out: Annotated[Path, typer.Option(help="Folder of the new model, to be served.")],
    train: Annotated[str | None, typer.Option(help="What learns: head, body or lora.")] = None,
    text_column: Annotated[str | None, typer.Option(help="Column of your file that holds the text.")] = None,
    label_column: Annotated[str | None, typer.Option(help="Column of your file that holds the label.")] = None,
    labelled: Annotated[int | None, typer.Option(help="Training rows that have their label: as the students'.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Most passes over them, each learning rate.")] = None,
    lr: Annotated[list[float] | None, typer.Option(help="Peak learning rate to try; may be repeated.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of weights and order; the rows keep data.seed.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Any field, as data.validation=200; may be repeated.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Give up the fine-tuned model OUT holds.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show no epochs, only the result.")] = False,
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
    _finetune(flags, data, settings or [], overwrite, quiet)


def _finetune(flags: dict[str, Any], data: str, settings: list[str], overwrite: bool, quiet: bool) -> None:
    # imported here: data sets need packages that serving does not
    try:
        from task_data.flags import data_fields
        from teacher_server.finetuning.finetune import finetune
        from teacher_server.finetuning.finetune_config import load_finetune_config
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"finetune needs the package {error.name}; install it with: pip install 'talking-models[finetune]'"
        ) from error
    transformers_logging.disable_progress_bar()
    console = Console(quiet=quiet, highlight=False)
    config = load_finetune_config(flags | data_fields(data), settings)
    result = finetune(
        config,
        overwrite,
        lambda each: console.print(
            f"learning rate {each.learning_rate:g}  epoch {each.epoch:>2}  train {each.train:.4f}  "
            f"validation {each.validation:.4f}"
        ),
    )
    typer.echo(
        f"validation {result.metric} {result.best.validation:.4f} (epoch {result.best.epoch}, learning rate "
        f"{result.best.learning_rate:g}, {result.labelled} labelled rows, {result.validation} that chose); serve it: "
        f"teacher-server serve --model {result.output}"
    )
