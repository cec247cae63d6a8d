"""The command `student-client init`: asks, looks at the file and at the teacher, writes a configuration; trains nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer
from rich.console import Console

from command_config import fields_of
from command_config.completion import complete_names
from command_config.line import Json
from command_config.writing import OFF, commented_yaml
from student_client.config import RunConfig, load_run_config
from student_client.flags import (
    Ca,
    Cert,
    DataFlag,
    Key,
    LabelColumn,
    MaxSteps,
    MethodFlag,
    Output,
    Settings,
    Size,
    TextColumn,
    TokenFile,
    settings_of,
)  # fmt: skip
from student_client.init.data import ask_data
from student_client.init.questions import NONE, Asker, between, number, one_of
from student_client.method_config import MethodName
from task_data.config import Level
from teaching_protocol.errors import ConfigError

if TYPE_CHECKING:
    from teaching_protocol.verbs import DescribeReply

__all__ = ["init"]

_WITHOUT_TEACHER: tuple[MethodName, ...] = ("task_only",)
_STEPS = 300
_DEADLINE_S = 10.0
_SIZES = ("tiny", "small", "complementary")


Separator = Annotated[
    str | None, typer.Option(help="What stands between several labels of a cell, such as `;`; none: one label.")
]
LevelFlag = Annotated[
    str | None,
    typer.Option(
        help="What of your file has a label: row, token or next_token.", autocompletion=complete_names(get_args(Level))
    ),
]
TokensColumn = Annotated[str | None, typer.Option(help="Column of your file that holds lists of tokens.")]
TagsColumn = Annotated[str | None, typer.Option(help="Column of your file that holds lists of their labels.")]
Tokenizer = Annotated[
    str | None, typer.Option(help="Name or folder of the teacher's tokenizer, for a student that reads its tokens.")
]


def init(
    file: Annotated[Path, typer.Argument(help="New YAML file.")] = Path("run.yaml"),
    data: DataFlag = None,
    text_column: TextColumn = None,
    label_column: LabelColumn = None,
    label_separator: Separator = None,
    level: LevelFlag = None,
    tokens_column: TokensColumn = None,
    tags_column: TagsColumn = None,
    teacher: Annotated[
        str | None,
        typer.Option(help="HOST:PORT of the teacher server, which is asked what it serves; none: no teacher."),
    ] = None,
    entry: Annotated[int | None, typer.Option(help="Layer at which a message enters.", min=0)] = None,
    exit: Annotated[int | None, typer.Option(help="Layer at which the answer is read.", min=1)] = None,
    method: MethodFlag = None,
    tokenizer: Tokenizer = None,
    size: Size = None,
    batch_size: Annotated[int | None, typer.Option(help="Rows of one step.", min=1)] = None,
    max_steps: MaxSteps = None,
    output: Output = None,
    ca: Ca = None,
    cert: Cert = None,
    key: Key = None,
    token_file: TokenFile = None,
    settings: Settings = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="Do not ask the teacher: entry and exit are then its own choice.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Ask nothing: flags, and defaults for the rest.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file if it exists.")] = False,
    as_json: Json = False,
) -> None:
    """Asks you and the teacher, and writes a commented configuration for `train --config`."""
    if file.exists() and not overwrite:
        raise ConfigError(f"{file} is there already; give a new name, or --overwrite")
    asker, console = Asker(yes), Console(stderr=True, highlight=False)
    columns = {"text_column": text_column, "label_column": label_column, "label_separator": label_separator}
    columns |= {"tokens_column": tokens_column, "tags_column": tags_column}
    found = ask_data(asker, {"data": data, "level": level, **columns})
    trust = {"teacher.ca": ca, "teacher.cert": cert, "teacher.key": key, "teacher.token_file": token_file}
    found |= _teacher(asker, teacher, {name: value for name, value in trust.items() if value}, found, offline, console)
    found |= _layers(asker, entry, exit, found)
    found["method.names"] = asker.ask("Method", "--method", method, _method(found), _methods(found))
    found |= _told(asker, tokenizer, found)
    found["student.size"] = asker.ask("Size of the student", "--size", size, "small", one_of("--size", _SIZES))
    rows = found.get("training.batch_size", 32)
    found["training.batch_size"] = asker.ask("Rows of one step", "--batch-size", _text(batch_size), str(rows), number)
    found["training.max_steps"] = asker.ask("Optimizer steps", "--max-steps", _text(max_steps), str(_STEPS), number)
    name = Path(str(found.get("data.path") or found["data.name"])).stem
    found["output"] = asker.ask("Folder of the run", "--output", _text(output), f"runs/{name}", str)
    config = _checked(load_run_config(None, found | settings_of(settings)))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(commented_yaml(config, _title(file), _unused(config)), encoding="utf-8")
    if as_json:
        typer.echo(json.dumps({"written": str(file), "fields": {name: _plain(each) for name, each in found.items()}}))
    else:
        typer.echo(
            f"written: {file}; look at it: student-client check-config {file}; train: student-client train --config {file}"
        )


def _teacher(
    asker: Asker, address: str | None, trust: dict[str, Any], data: dict[str, Any], offline: bool, console: Console
) -> dict[str, Any]:
    """The teacher's address, and what its card proposes; nothing where there is none."""
    from student_client.init.proposals import MODALITIES, propose_session, said_of

    def fields(text: str) -> dict[str, Any]:
        if text == NONE:
            return {}
        first, *others = text.split(",")
        found = {"teacher.address": first, **trust} | ({"teacher.addresses": others} if others else {})
        if not offline:
            card = _card(first, trust)
            defaults = load_run_config(None, {})
            modality = MODALITIES.get(str(data["data.name"]), "text")
            found |= propose_session(card, modality, defaults.training.batch_size, defaults.method.message_width)
            found["layers"] = card.layers
            console.print(f"the teacher: {said_of(card)}", soft_wrap=True, markup=False)
        return found

    return asker.ask("Teacher's HOST:PORT, or none", "--teacher", address, "127.0.0.1:50051", fields)


def _card(address: str, trust: dict[str, Any]) -> DescribeReply:
    from student_client.connection.card import ask_for_card
    from student_client.connection.credentials import Credentials

    given = {name.removeprefix("teacher."): value for name, value in trust.items()}
    return ask_for_card(address, _DEADLINE_S, Credentials(**given), pings=0)[0]


def _layers(asker: Asker, entry: int | None, exit: int | None, found: dict[str, Any]) -> dict[str, Any]:
    """Entry and exit: asked for where the teacher's card has said what there is."""
    layers = found.pop("layers", None)
    if layers is None:
        given = {"teacher.entry": entry, "teacher.exit": exit}
        return {name: value for name, value in given.items() if value is not None}
    enters, leaves = str(found["teacher.entry"]), str(found["teacher.exit"])
    start = asker.ask("Layer where messages enter", "--entry", _text(entry), enters, between("--entry", 0, layers - 1))
    stop = asker.ask(
        "Layer where answers are read",
        "--exit",
        _text(exit),
        max(leaves, str(start + 1), key=int),
        between("--exit", start + 1, layers),
    )
    return {"teacher.entry": start, "teacher.exit": stop}


def _method(found: dict[str, Any]) -> str:
    return "talking" if "teacher.address" in found else _WITHOUT_TEACHER[0]


def _told(asker: Asker, tokenizer: str | None, found: dict[str, Any]) -> dict[str, Any]:
    """What the methods need to be told for labels of tokens, and whose tokens the student reads."""
    from student_client.init.proposals import propose_method

    names, level = found["method.names"], found.get("data.level", "row")
    said = propose_method(names, level)
    if tokenizer is None and (level == "row" or "soft_labels" not in names):
        return said
    question = "Name or folder of the teacher's tokenizer"

    def given(text: str) -> str:
        if text == NONE and "soft_labels" in names and level != "row":
            raise ConfigError(
                "--tokenizer: received none, expected the name or folder of the teacher's tokenizer: soft_labels compares "
                "tokens one by one, so that the student must read the teacher's; or leave soft_labels out (--method)"
            )
        return text

    return said | {"student.tokenizer": asker.ask(question, "--tokenizer", tokenizer, NONE, given)}


def _checked(config: RunConfig) -> RunConfig:
    """The same; refuses a method that makes no sense for what has a label, as `train` would."""
    if config.data.level != "row":
        from student_client.methods import check_suits
        from task_data import Task

        check_suits(config.method, Task(config.data.name, ("a", "b"), level=config.data.level))
    return config


def _methods(found: dict[str, Any]) -> Callable[[str], list[str]]:
    """Names with commas; without a teacher, of those that ask none."""
    known = get_args(MethodName) if "teacher.address" in found else _WITHOUT_TEACHER

    def check(text: str) -> list[str]:
        return [one_of("--method", known)(name.strip()) for name in text.split(",")]

    return check


def _unused(config: RunConfig) -> list[str]:
    """Sections of methods that are not used and hold nothing but defaults."""
    own = {
        field.split(".")[1] for field in fields_of(RunConfig) if field.startswith("method.") and field.count(".") > 1
    }
    kept = {"fixed_mix": "selection", "random_soft": "selection", "random_hard": "selection"}
    used = {kept.get(name, name) for name in config.method.names}
    plain = load_run_config(None, {}).method
    return [f"method.{name}" for name in sorted(own - used) if getattr(config.method, name) == getattr(plain, name)]


def _title(file: Path) -> str:
    return (
        f"A training run. Check it: student-client check-config {file}; start it: student-client train --config {file}\n"
        f"A line that begins with `{OFF}` and a field holds the default: take the sign away, and those of the sections around\n"
        "it, to change it. What is none is written null."
    )


def _text(value: int | Path | None) -> str | None:
    return None if value is None else str(value)


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value
