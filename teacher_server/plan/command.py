"""The command `teacher-server plan`: sizes before loading, students that fit, and with --measure students served."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from transformers.utils import logging as transformers_logging

from teacher_server.config import ServerConfig, load_config
from teacher_server.loading import empty_teacher, spread_of
from teacher_server.plan.graphs import StepShape, graph_bytes, session_bytes
from teacher_server.plan.layout import Layout, lay_out
from teacher_server.plan.measuring import measure
from teacher_server.plan.sizing import Measured, Room, Sizes, students_served
from teacher_server.plan.weights import file_bytes, served_bytes
from teacher_server.split import FrozenTeacher
from teaching_protocol.diagnosis.machine import free_bytes
from teaching_protocol.errors import InvalidSetting
from teaching_protocol.verbs import SessionSettings

__all__ = ["Plan", "make_plan", "plan"]

SCHEMA = 1
_GIB, _MIB = 2**30, 2**20
_EVERY_S = (0.1, 0.25, 0.5, 1.0, 2.0, 5.0)


@dataclass(frozen=True)
class Plan:
    """A teacher's sizes and what follows from them.

    Attributes:
        model: as it was named.
        device: kind of device planned for.
        shape: of one student's step.
        files, weights: bytes by dtype, in the files and as served.
        room: what fits.
        measured: seconds of steps; empty without --measure.
        layout: of the weights over devices; None where one has them all.
    """

    model: str
    device: str
    shape: StepShape
    files: dict[str, int]
    weights: dict[str, int]
    room: Room
    measured: tuple[Measured, ...] = ()
    layout: Layout | None = None

    def served(self, every_s: float) -> tuple[int, int]:
        """Students that may ask every so many seconds: one by one, and merged."""
        rows = self.shape.rows
        alone, merged = (students_served(self.measured, rows, every_s, merged=each) for each in (False, True))
        return alone, merged

    def as_json(self, every_s: Sequence[float]) -> str:
        """One JSON object; docs/doctor.md has the fields."""
        settings, sizes, room = self.shape.settings, self.room.sizes, self.room
        found: dict[str, Any] = {
            "schema": SCHEMA,
            "model": self.model,
            "device": self.device,
            "memory_bytes": room.memory,
            "step": {"rows": self.shape.rows, "tokens": self.shape.tokens, "message_width": settings.message_width}
            | {"entry": settings.entry, "exit": settings.exit, "codec_depth": settings.codec_depth},
            "weights_file_bytes": self.files,
            "weights_served_bytes": self.weights,
            "bytes": dataclasses.asdict(sizes),
            "fixed_bytes": room.fixed,
            "graph_over_message": round(sizes.graph / max(1, sizes.message), 2),
            "students_fit": {"sessions": room.sessions, "kept": room.kept, "kept_by_budget": room.kept_by_budget},
            "measured": [dataclasses.asdict(each) for each in self.measured],
        }
        if self.layout is not None:
            found["layout"] = {"main": self.layout.main, "offloads": self.layout.offloads} | {
                "devices": [dataclasses.asdict(each) for each in self.layout.shares]
            }
        if self.measured:
            named = [(each, *self.served(each)) for each in every_s]
            found["served"] = [{"every_s": each, "alone": alone, "merged": merged} for each, alone, merged in named]
        return json.dumps(found, indent=1)


def plan(
    model: Annotated[str | None, typer.Option(help="Model, as given to serve.")] = None,
    config: Annotated[Path | None, typer.Option("--config", help="YAML or TOML file, as given to serve.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1.")] = None,
    device_map: Annotated[
        str | None,
        typer.Option(help="Spread the weights, as given to serve: auto, balanced, sequential, or a JSON file."),
    ] = None,
    device_memory: Annotated[
        list[str] | None,
        typer.Option(help="What a device may hold of the weights, 0=20GiB or cpu=60GiB; may be repeated."),
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Compute threads to measure with.")] = None,
    rows: Annotated[int, typer.Option(min=1, help="Rows of one student's step.")] = 32,
    tokens: Annotated[int, typer.Option(min=1, help="Message tokens of a row.")] = 64,
    message_width: Annotated[int, typer.Option(min=1, help="Width of the messages.")] = 128,
    codec_depth: Annotated[int, typer.Option(min=1, help="Layers of the codec.")] = 2,
    memory: Annotated[
        float | None, typer.Option(min=0, help="GiB to plan for; the device's memory without it.")
    ] = None,
    measured: Annotated[
        bool, typer.Option("--measure", help="Load the model and measure steps on this device.")
    ] = False,
    every: Annotated[
        list[float] | None, typer.Option(help="Seconds between a student's steps; may be repeated.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
) -> None:
    """Prints what a teacher will hold and how many students fit, without loading its weights; --measure adds how many it serves."""
    transformers_logging.disable_progress_bar()
    flags: dict[str, Any] = {"model": model, "dtype": dtype, "device": device, "threads": threads}
    flags |= {"device_map": device_map, "device_memory": device_memory or None}
    found = load_config(config, flags)
    if found.threads:
        torch.set_num_threads(found.threads)
    settings = SessionSettings(message_width=message_width, codec_depth=codec_depth)
    made = make_plan(found, rows, tokens, settings, memory)
    if measured:
        made = dataclasses.replace(made, measured=tuple(measure(found, made.shape)))
    every_s = tuple(each for each in every or () if each > 0) or _EVERY_S
    if as_json:
        sys.stdout.write(made.as_json(every_s) + "\n")
    else:
        _print(made, every_s)


def make_plan(
    config: ServerConfig, rows: int, tokens: int, settings: SessionSettings, memory_gib: float | None = None
) -> Plan:
    """Sizes of a configured teacher and of one student's step; no weights are loaded.

    Raises:
        ModelLoadError, UnsupportedFamily, InvalidSetting: with what to do.
    """
    teacher = empty_teacher(config.model, config.dtype, config.trust_remote_code, config.image_size)
    weights = served_bytes(teacher)
    spread = spread_of(config)
    layout = None if spread is None else lay_out(teacher, spread)
    if layout is not None and layout.offloads:
        teacher.family.run_again()
    shape = StepShape(rows, tokens, _spanned(settings, teacher, config))
    if layout is not None:
        config = config.model_copy(update={"device": "cpu" if layout.main == "cpu" else f"cuda:{layout.main}"})
    kind = torch.device("cuda" if config.device == "auto" and torch.cuda.is_available() else _kind(config.device)).type
    is_here = kind == "cpu"
    graph = graph_bytes(teacher, shape, kind if is_here or torch.cuda.is_available() else "cpu")
    replies = min(config.session_replay_bytes, 256 * 2 * shape.message_bytes)
    sizes = Sizes(
        sum(weights.values()) if layout is None else layout.main_bytes, session_bytes(teacher, shape.settings), graph, shape.message_bytes, replies,
        config.knowledge_cache_bytes, config.graph_cache_bytes, config.state_bytes,
    )  # fmt: skip
    memory = _memory(kind) if memory_gib is None else int(memory_gib * _GIB)
    room = Room(memory, sizes, config.max_sessions, is_here)
    return Plan(config.model, kind, shape, file_bytes(config.model), weights, room, layout=layout)


def _kind(device: str) -> str:
    return "cpu" if device == "auto" else device


def _spanned(settings: SessionSettings, teacher: FrozenTeacher, config: ServerConfig) -> SessionSettings:
    span = teacher.default_span()
    entry = span.start if config.entry is None else config.entry
    exit_ = span.stop if config.exit is None else config.exit
    if not 0 <= entry < exit_ <= teacher.family.layers:
        raise InvalidSetting(f"entry {entry}, exit {exit_}: expected 0 <= entry < exit <= {teacher.family.layers}")
    return dataclasses.replace(settings, entry=entry, exit=exit_)


def _memory(kind: str) -> int:
    if kind == "cuda" and torch.cuda.is_available():
        return torch.cuda.mem_get_info()[1]
    return free_bytes()


def _print(made: Plan, every_s: Sequence[float]) -> None:
    console, shape, room = Console(highlight=False), made.shape, made.room
    sizes, settings = room.sizes, shape.settings
    title = f"{made.model} on {made.device}: steps of {shape.rows} rows x {shape.tokens} tokens, width {settings.message_width}"
    table = Table(title=title)
    table.add_column("what")
    table.add_column("MiB", justify="right")
    table.add_column("how it is known", overflow="fold")
    files = ", ".join(f"{name} {size / _MIB:.0f}" for name, size in made.files.items()) or "no local files"
    served = ", ".join(f"{name} {size / _MIB:.0f}" for name, size in made.weights.items())
    for what, size, how in (
        ("weights", sizes.weights, f"as served: {served}; in the files: {files}"),
        ("knowledge cache", sizes.knowledge_budget, "its budget, knowledge_cache_bytes"),
        ("one step at work", 2 * sizes.graph, "its graph, and gradients taken to be as large again"),
        ("session of a student", sizes.session, "codec, gathered gradients, optimizer"),
        ("kept replies of a student", sizes.replies, "at most; in the machine's memory"),
        (
            "graph of a step in flight",
            sizes.graph,
            f"layers {settings.entry} to {settings.exit}, {sizes.graph / max(1, sizes.message):.0f} times its message",
        ),
        ("memory", room.memory, "to plan for"),
    ):
        table.add_row(what, f"{size / _MIB:,.1f}", how)
    if made.layout is not None:
        _print_layout(console, made.layout)
    console.print(table)
    _print_fit(console, made)
    if made.measured:
        _print_served(console, made, every_s)


def _print_layout(console: Console, layout: Layout) -> None:
    table = Table(title="where the weights would lie")
    for name in ("device", "MiB", "may hold"):
        table.add_column(name, justify="right")
    table.add_column("modules", overflow="fold")
    for share in layout.shares:
        limit = "" if share.limit_bytes is None else f"{share.limit_bytes / _MIB:,.1f}"
        table.add_row(share.device, f"{share.size_bytes / _MIB:,.1f}", limit, ", ".join(share.modules))
    console.print(table)
    moves = (
        f"; what is offloaded comes there to compute, a layer of up to {layout.largest_bytes / _MIB:,.1f} MiB at a time"
    )
    console.print(f"states enter on {layout.main}, and sessions lie there{moves if layout.offloads else ''}")


def _print_fit(console: Console, made: Plan) -> None:
    room = made.room
    if room.left <= 0:
        console.print(f"[red]it does not fit: {room.fixed / _GIB:.1f} GiB are needed before the first student[/]")
        return
    console.print(
        f"students that fit: {room.kept} with a step in flight each and its graph kept ({room.kept_by_budget} within "
        f"graph_cache_bytes); {room.sessions} sessions at most, the others' Forwards then run again for their Backwards"
    )


def _print_served(console: Console, made: Plan, every_s: Sequence[float]) -> None:
    steps = Table(title="a whole step, measured")
    for name in ("rows", "seconds", "rows a second", "graph MiB"):
        steps.add_column(name, justify="right")
    for each in made.measured:
        cells = (f"{each.seconds:.3f}", f"{each.rows / each.seconds:,.0f}", f"{each.graph_bytes / _MIB:,.1f}")
        steps.add_row(str(each.rows), *cells)
    console.print(steps)
    table = Table(title="students served while the device computes 80% of the time")
    for name in ("each asks every", "one by one", "merged"):
        table.add_column(name, justify="right")
    for seconds in every_s:
        table.add_row(f"{seconds:g} s", *map(str, made.served(seconds)))
    console.print(table)
