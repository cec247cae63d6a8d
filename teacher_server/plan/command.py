"""The command `teacher-server plan`: sizes before loading, students that fit, and with --measure students served."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from command_config.line import Json
from teacher_server.config import load_config
from teacher_server.flags import ConfigFile, Device, DeviceMap, DeviceMemory, Dtype, Model, TensorParallel

if TYPE_CHECKING:
    from teacher_server.plan.layout import Layout
    from teacher_server.plan.planning import Plan

__all__ = ["plan"]

_GIB, _MIB = 2**30, 2**20
_EVERY_S = (0.1, 0.25, 0.5, 1.0, 2.0, 5.0)


def plan(
    model: Model = None,
    config: ConfigFile = None,
    dtype: Dtype = None,
    device: Device = None,
    device_map: DeviceMap = None,
    device_memory: DeviceMemory = None,
    tensor_parallel: TensorParallel = None,
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
    as_json: Json = False,
) -> None:
    """Prints what a teacher will hold and how many students fit, without loading its weights; --measure adds how many it serves."""
    # imported here: help and completion need no torch
    import torch
    from transformers.utils import logging as transformers_logging

    from teacher_server.plan.measuring import measure
    from teacher_server.plan.planning import make_plan
    from teaching_protocol.verbs import SessionSettings

    transformers_logging.disable_progress_bar()
    flags: dict[str, Any] = {"model": model, "dtype": dtype, "device": device, "threads": threads}
    flags |= {"device_map": device_map, "device_memory": device_memory or None, "tensor_parallel": tensor_parallel}
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
    share = "" if made.processes == 1 else f"the share of each of {made.processes} processes; "
    for what, size, how in (
        ("weights", sizes.weights, f"{share}as served: {served}; in the files: {files}"),
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
    if made.processes > 1:
        console.print(
            f"of the one of {made.processes} processes that serves; the others hold as much of the weights and of graphs, and nothing "
            "else. Graphs are counted as if they were not split: they are smaller"
        )
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
