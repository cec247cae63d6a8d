"""What the process that serves tells the others to run with it: one line of JSON, then tensors by a collective; runs nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import distributed

__all__ = [
    "Back",
    "Begin",
    "Drop",
    "Look",
    "Pass",
    "Run",
    "Say",
    "read_begin",
    "read_pass",
    "receive",
    "send",
    "written",
]

Shapes = Mapping[str, tuple[str, tuple[int, ...]]]


@dataclass(frozen=True)
class Begin:
    """The first line: who this process is, where all meet, and the model to load.

    Attributes:
        rank, ranks: of the process, and how many there are.
        meeting: path of the file by which they find each other.
        threads: compute threads of each; 0 leaves torch's choice.
    """

    rank: int
    ranks: int
    meeting: str
    model: str
    dtype: str
    trust_remote_code: bool
    deterministic: bool
    threads: int
    log_json: bool
    log_level: str


@dataclass(frozen=True)
class Look:
    """`FrozenTeacher.look` at inputs."""

    layers: tuple[int, ...]
    with_logits: bool
    with_pooled: bool
    with_finished: bool


@dataclass(frozen=True)
class Say:
    """`FrozenTeacher.say` on `finished` states."""


@dataclass(frozen=True)
class Run:
    """The span of blocks start .. stop - 1 on `states` and `mask`; its graph is kept under a key, 0 keeps none."""

    start: int
    stop: int
    key: int = 0


@dataclass(frozen=True)
class Back:
    """Backward with `grad` through the graph of a key, which is then gone."""

    key: int


@dataclass(frozen=True)
class Drop:
    """Graphs that nobody will go back through."""

    keys: tuple[int, ...]


Pass = Look | Say | Run | Back | Drop
_KINDS: Mapping[str, type[Pass]] = {"look": Look, "say": Say, "run": Run, "back": Back, "drop": Drop}


def written(wanted: Begin | Pass, tensors: Mapping[str, torch.Tensor] | None = None) -> bytes:
    """A line that says what is wanted and which tensors follow."""
    kind = next((name for name, each in _KINDS.items() if isinstance(wanted, each)), "begin")
    shapes = {name: (str(each.dtype).removeprefix("torch."), each.shape) for name, each in (tensors or {}).items()}
    return json.dumps({"kind": kind, "is": asdict(wanted), "tensors": shapes}).encode() + b"\n"


def read_begin(line: bytes) -> Begin:
    """The first line."""
    return Begin(**json.loads(line)["is"])


def read_pass(line: bytes) -> tuple[Pass, Shapes]:
    """Any other line: what is wanted, and dtype and shape of the tensors that follow, by name."""
    found = json.loads(line)
    fields: dict[str, Any] = {name: tuple(it) if isinstance(it, list) else it for name, it in found["is"].items()}
    shapes = {name: (dtype, tuple(shape)) for name, (dtype, shape) in found["tensors"].items()}
    return _KINDS[found["kind"]](**fields), shapes


def send(tensors: Mapping[str, torch.Tensor]) -> None:
    """Gives tensors to all other processes, which `receive` them."""
    for each in tensors.values():
        distributed.broadcast(each.detach().contiguous(), src=0)


def receive(shapes: Shapes, device: torch.device) -> dict[str, torch.Tensor]:
    """Takes what the process that serves sends."""
    found = {
        name: torch.empty(shape, dtype=getattr(torch, dtype), device=device) for name, (dtype, shape) in shapes.items()
    }
    for each in found.values():
        distributed.broadcast(each, src=0)
    return found
