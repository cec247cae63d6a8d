"""The command `student-client`: flags to a configuration; what trains or asks is imported when it is asked for."""

from __future__ import annotations

import json
import signal
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer
from rich.console import Console

from command_config import as_json as config_as_json
from command_config import as_table, hint
from command_config.completion import complete_names
from command_config.line import Json, add_commands, run_line
from student_client.compare.command import compare
from student_client.compare.search import search
from student_client.config import RunConfig, run_file
from student_client.doctor.command import doctor
from student_client.examples import EXAMPLES
from student_client.flags import (
    Ca,
    Cert,
    Complementary,
    ConfigFile,
    DataFlag,
    Key,
    LabelColumn,
    Labelled,
    MaxSteps,
    MethodFlag,
    Output,
    Overwrite,
    Quiet,
    Restartable,
    Resume,
    Seed,
    Settings,
    Size,
    TeacherFlag,
    TextColumn,
    Threads,
    TokenFile,
    Unlabelled,
    addresses,
    effective,
    read_config,
    run_fields,
)
from student_client.fleet.command import fleet
from student_client.init.command import init
from student_client.selection.command import select
from task_data.config import DataConfig, DataName, SplitName
from task_data.flags import data_fields
from teaching_protocol.errors import ConfigError, ServiceError, SessionNotFound

if TYPE_CHECKING:
    from student_client.training.trainer import Trainer

__all__ = ["build_app", "main"]

_CARD = (
    "model_name",
    "model_hash",
    "family",
    "layers",
    "entry",
    "exit",
    "dtype",
    "heads",
    "input_ports",
    "output_ports",
)


def main() -> None:
    """Runs the command line; an error of the teaching tree is one line on the standard error and exit code 1."""
    run_line("student-client", build_app())


def build_app() -> typer.Typer:
    """The commands, without running one."""
    app = typer.Typer(
        help="Trains students against a served teacher.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
    )
    commands = (init, train, fleet, select, evaluate, export, compare, search, ping, doctor, demo, check_config)
    add_commands(app, {each.__name__.replace("_", "-"): each for each in commands}, EXAMPLES)
    return app


def train(
    config: ConfigFile = None,
    data: DataFlag = None,
    text_column: TextColumn = None,
    label_column: LabelColumn = None,
    labelled: Labelled = None,
    unlabelled: Unlabelled = None,
    method: MethodFlag = None,
    teacher: TeacherFlag = None,
    ca: Ca = None,
    cert: Cert = None,
    key: Key = None,
    token_file: TokenFile = None,
    complementary: Complementary = None,
    size: Size = None,
    output: Output = None,
    seed: Seed = None,
    max_steps: MaxSteps = None,
    threads: Threads = None,
    settings: Settings = None,
    resume: Resume = False,
    restartable: Restartable = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Trains one student; Ctrl-C or SIGTERM ends it after its step, to go on later with --resume."""
    from student_client.training.checkpoints import checkpoint_folders  # here: help and completion need no torch

    trust = {"ca": ca, "cert": cert, "key": key, "token_file": token_file}
    flags = run_fields(
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
    ) | {
        "method.names": method,
        "complementary": [{"address": address, **trust} for address in complementary or ()] or None,
        "output": output,
    }
    if resume and config is None:
        config = run_file(read_config(None, {"output": output}, settings).output)
    found = read_config(config, flags, settings)
    resume = resume or (restartable and bool(checkpoint_folders(found.output / "checkpoints")))
    _train(found, resume, overwrite or restartable, quiet, as_json)  # what has no checkpoint yet is begun again


def evaluate(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    split: Annotated[
        str,
        typer.Option(help="train, validation or test.", autocompletion=complete_names(get_args(SplitName))),
    ] = "test",
    as_json: Json = False,
) -> None:
    """Scores the best student of a run, alone: no teacher and no codec."""
    if split not in get_args(SplitName):
        raise ConfigError(
            f"--split: received {split!r}, expected one of {', '.join(get_args(SplitName))}{hint(split, get_args(SplitName))}"
        )
    from student_client.training.evaluate import evaluate_run

    scores = evaluate_run(run, split)  # type: ignore[arg-type]
    if as_json:
        typer.echo(json.dumps({"split": split, "rows": scores.rows, **scores.as_dict()}))
        return
    named = "  ".join(f"{name} {value:.4f}" for name, value in scores.as_dict().items())
    typer.echo(f"{split}: {named}  ({scores.rows} rows)")


def export(
    run: Annotated[Path, typer.Argument(help="Folder of a run, or of a saved student.")],
    file: Annotated[Path, typer.Argument(help="What to write, ending with .onnx or .pt2.")],
    as_json: Json = False,
) -> None:
    """Writes the best student of a run as ONNX or as a torch.export program, which need nothing of this package."""
    from student_models import load_student  # here: help and completion need no torch
    from student_models.export import example_columns, export_student

    is_run = (run / "student").is_dir()
    student = load_student(run / "student" if is_run else run)
    columns = example_columns(student)
    export_student(student, file, columns)
    size, takes = file.stat().st_size, list(student.view(columns))
    if as_json:
        typer.echo(json.dumps({"written": str(file), "bytes": size, "takes": takes}))
        return
    typer.echo(f"{file}: {size / 1e6:.1f} MB, takes {', '.join(takes)}")


def ping(
    address: Annotated[str, typer.Argument(help="HOST:PORT of a teacher server.")],
    deadline_s: Annotated[float, typer.Option(min=0.001, help="Seconds to wait for an answer.")] = 5.0,
    ca: Ca = None,
    cert: Cert = None,
    key: Key = None,
    token_file: TokenFile = None,
    as_json: Json = False,
) -> None:
    """Asks a teacher for its card, and how long an answer takes."""
    from student_client.connection.card import PINGS, ask_for_card, card_fields
    from student_client.connection.credentials import Credentials

    credentials = Credentials(ca=ca, cert=cert, key=key, token_file=token_file)
    card, seconds = ask_for_card(address, deadline_s, credentials)
    if as_json:
        typer.echo(json.dumps(card_fields(card) | {"round_trip_ms": round(1e3 * seconds, 3), "pings": PINGS}, indent=1))
        return
    for field in _CARD:
        value = getattr(card, field)
        typer.echo(f"{field:<14}{', '.join(value) if isinstance(value, tuple) else value}")
    typer.echo(f"{'round trip':<14}{1e3 * seconds:.2f} ms (median of {PINGS})")


def demo(
    output: Annotated[
        Path, typer.Option(help="Folder of everything the demo writes; an earlier demo's is emptied.")
    ] = Path("runs/demo"),
    data: Annotated[
        str | None,
        typer.Option(
            help="A CSV, JSONL or Parquet file of yours, or a data set by name.",
            autocompletion=complete_names(get_args(DataName)),
        ),
    ] = None,
    text_column: Annotated[str, typer.Option(help="Column of your file that holds the text.")] = "text",
    label_column: Annotated[str, typer.Option(help="Column of your file that holds the label.")] = "label",
    labelled: Annotated[int, typer.Option(min=0, help="Training rows that keep their label.")] = 300,
    unlabelled: Annotated[int, typer.Option(min=0, help="Further training rows, used without their label.")] = 1500,
    validation: Annotated[int, typer.Option(min=1, help="Rows that choose the best student.")] = 500,
    model: Annotated[str | None, typer.Option(help="Teacher to serve instead of MiniLM.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps of each student.")] = 300,
    seed: Annotated[int, typer.Option(min=0, help="Seed of students, codecs and order.")] = 0,
    as_json: Json = False,
) -> None:
    """Starts a teacher server and three students at once (task only, one-way, talking), and compares them."""
    from student_client.demo import Demo, run_demo

    chosen = Demo().data
    if data is not None:
        fields = data_fields(data) | {"data.text_column": text_column, "data.label_column": label_column}
        chosen = DataConfig.model_validate({name.removeprefix("data."): value for name, value in fields.items()})
    chosen = chosen.model_copy(update={"labelled": labelled, "unlabelled": unlabelled, "validation": validation})
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that every process is ended
    run_demo(Demo(output, chosen, model, steps, seed), Console(stderr=as_json))
    if as_json:
        typer.echo((output / "report.json").read_text(encoding="utf-8"))


def check_config(
    config: Annotated[
        Path | None, typer.Argument(help="YAML or TOML file; none for environment and flags alone.")
    ] = None,
    data: DataFlag = None,
    teacher: TeacherFlag = None,
    output: Output = None,
    settings: Settings = None,
    as_json: Json = False,
) -> None:
    """Checks the configuration of a run and prints every value and where it came from; secrets are masked."""
    found = effective(config, addresses(teacher) | data_fields(data) | {"output": output}, settings)
    if as_json:
        typer.echo(config_as_json(found))
    else:
        Console().print(as_table(found, f"{config or 'the configuration'} is good"))


def _train(config: RunConfig, resume: bool, overwrite: bool, quiet: bool, as_json: bool) -> None:
    from student_client.reporting.progress import Progress
    from student_client.training.checkpoints import checkpoint_folders
    from student_client.training.runs import measured, open_run

    progress = Progress("+".join(config.method.names), file=sys.stderr if as_json else None, quiet=quiet)
    with open_run(config, resume=resume, overwrite=overwrite, progress=progress) as trainer:
        try:
            result = trainer.run()
        except (ServiceError, SessionNotFound) as error:
            if checkpoint_folders(config.output / "checkpoints"):
                error.add_note(f"then go on with: student-client train --resume --output {config.output}")
            raise
        if result is not None:
            result = trainer.ranks.only_first(partial(measured, trainer, result), result)
    if result is None:
        if trainer.ranks.is_first:
            _say_how_to_go_on(config, trainer, as_json)
        raise typer.Exit(128 + trainer.interrupts.signal)
    if not trainer.ranks.is_first:
        return
    if as_json:
        typer.echo(json.dumps({"finished": True, "output": str(config.output), **asdict(result)}, indent=1))
        return
    typer.echo(
        f"{result.method}: test {result.metric} {result.test:.4f} (validation {result.validation:.4f}) after "
        f"{result.steps} steps, {result.wall_s:.0f} s, teacher {result.teacher_s:.0f} s; student in {config.output / 'student'}"
    )
    typer.echo(f"student: {result.student_size}")
    if result.teacher_size.parameters:
        typer.echo(f"teacher: {result.teacher_size}")


def _say_how_to_go_on(config: RunConfig, trainer: Trainer, as_json: bool) -> None:
    """Of a run that was interrupted."""
    step, total = trainer.position.step, trainer.total_steps
    onward = f"student-client train --resume --output {config.output}"
    ended = {"finished": False, "step": step, "total_steps": total, "go_on_with": onward}
    typer.echo(json.dumps(ended) if as_json else f"ended after step {step} of {total}; go on with: {onward}")
