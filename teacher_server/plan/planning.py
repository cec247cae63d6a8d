"""A teacher's sizes and what fits beside them, as values and as JSON; loads no weights, prints nothing."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from teacher_server.config import ServerConfig
from teacher_server.models.loading import empty_teacher, spread_of
from teacher_server.models.sharding import Shards
from teacher_server.models.split import FrozenTeacher
from teacher_server.plan.graphs import StepShape, graph_bytes, session_bytes
from teacher_server.plan.layout import Layout, lay_out
from teacher_server.plan.sizing import Measured, Room, Sizes, students_served
from teacher_server.plan.weights import file_bytes, served_bytes
from teaching_protocol.diagnosis.machine import free_bytes
from teaching_protocol.errors import InvalidSetting
from teaching_protocol.verbs import SessionSettings

__all__ = ["Plan", "make_plan"]

SCHEMA = 1
_GIB = 2**30


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
        processes: that split every layer's weights; `room` is then of one of them.
    """

    model: str
    device: str
    shape: StepShape
    files: dict[str, int]
    weights: dict[str, int]
    room: Room
    measured: tuple[Measured, ...] = ()
    layout: Layout | None = None
    processes: int = 1

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
            "processes": self.processes,
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
    held = _held(teacher, config) if layout is None else layout.main_bytes
    if layout is not None:
        config = config.model_copy(update={"device": "cpu" if layout.main == "cpu" else f"cuda:{layout.main}"})
    kind = torch.device("cuda" if config.device == "auto" and torch.cuda.is_available() else _kind(config.device)).type
    is_here = kind == "cpu"
    graph = graph_bytes(teacher, shape, kind if is_here or torch.cuda.is_available() else "cpu")
    replies = min(config.session_replay_bytes, 256 * 2 * shape.message_bytes)
    sizes = Sizes(
        held, session_bytes(teacher, shape.settings), graph, shape.message_bytes, replies,
        config.knowledge_cache_bytes, config.graph_cache_bytes, config.state_bytes,
    )  # fmt: skip
    memory = _memory(kind) if memory_gib is None else int(memory_gib * _GIB)
    room = Room(memory, sizes, config.max_sessions, is_here)
    files, processes = file_bytes(config.model), config.tensor_parallel
    return Plan(config.model, kind, shape, files, weights, room, layout=layout, processes=processes)


def _held(teacher: FrozenTeacher, config: ServerConfig) -> int:
    """Bytes of the weights that the process that serves has: all, or its share."""
    if config.tensor_parallel == 1:
        return sum(served_bytes(teacher).values())
    shards = Shards(config.tensor_parallel)
    shards.options(teacher.model)
    return shards.share_bytes(teacher.model)


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
