"""A session's whole state as safetensors bytes and back; knows no call and no file.

The bytes hold the codec, the optimizer's moments, gathered gradients, and as metadata the settings,
the step and the hash of the teacher's weights. No pickle.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError
from safetensors.torch import load, save

from teacher_server.sessions.sessions import Grads, Session
from teaching_protocol.errors import StateMismatch

__all__ = ["export_state", "import_state"]

_VERSION = 1
_FREE = ("seed", "world_size")  # settings that a state and its session need not share
_HEADER_BYTES = 8
_LONGEST_HEADER = 2**20
_COPIES = (
    3  # float32 weights and two moments, and gathered gradients of each rank: no state holds more for each parameter
)
_MOMENTS = {
    "adam": {"step", "exp_avg", "exp_avg_sq"},
    "adamw": {"step", "exp_avg", "exp_avg_sq"},
    "sgd": {"momentum_buffer"},
}


def export_state(session: Session, model_hash: str) -> bytes:
    """Gives the state between two calls; call it from the thread that owns the session."""
    tensors = {f"codec.{name}": value for name, value in session.codec.state_dict().items()}
    optimizer = session.optimizer.state_dict()
    for place, moments in optimizer["state"].items():
        tensors |= {
            f"optimizer.{place}.{name}": torch.as_tensor(value) for name, value in moments.items() if value is not None
        }
    for rank, grads in session.gathered_by.items():
        for place, grad in enumerate(grads):
            if grad is not None:
                tensors[f"gathered.{place}.{rank}" if rank else f"gathered.{place}"] = grad
    facts = {
        "version": _VERSION,
        "step": session.step,
        "model_hash": model_hash,
        "settings": dataclasses.asdict(session.settings),
        "gathered": bool(session.gathered_by),
    }
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    return bytes(save(tensors, {"teaching": json.dumps(facts, sort_keys=True)}))


def import_state(session: Session, blob: bytes, model_hash: str) -> None:
    """Replaces the session's state by exported bytes; on an error nothing has changed.

    Raises:
        StateMismatch: bytes that are no state, of another version, teacher or settings, or with
            tensors that do not fit.
    """
    parameters = session.parameters()
    ranks = max(1, session.settings.world_size)
    _check_size(blob, 4 * (_COPIES + ranks) * sum(parameter.numel() for parameter in parameters))
    tensors, facts = _opened(blob)
    _check_facts(session, facts, model_hash)
    parts = _parted(tensors)
    _check_tensors(session.codec.state_dict(), parts.codec)
    _check_moments(parts.optimizer, session.settings.optimizer.name)
    moments = {place: _fitting(parameters, place, each) for place, each in parts.optimizer.items()}
    gathered = {rank: _placed(parameters, grads) for rank, grads in parts.gathered.items()}
    if any(rank >= ranks for rank in gathered):
        raise StateMismatch(
            f"the state holds gradients of rank {max(gathered)}, this session has {ranks}; import one between two steps"
        )
    if facts.gathered and not gathered:
        gathered = {0: [None] * len(parameters)}  # Backwards that found no gradient
    groups = session.optimizer.state_dict()["param_groups"]
    session.optimizer.load_state_dict({"state": moments, "param_groups": groups})
    session.codec.load_state_dict(parts.codec)
    session.gathered_by = gathered if facts.gathered else {}
    session.step = facts.step


class _Facts(BaseModel):
    """What a state says of itself beside its tensors."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    version: int
    step: int = Field(ge=0, le=2**62)
    model_hash: str
    settings: dict[str, Any]
    gathered: bool


@dataclasses.dataclass(frozen=True)
class _Parts:
    """The tensors of a state by what they belong to; places are those of the codec's parameters. `gathered` is by rank, then place."""

    codec: dict[str, torch.Tensor]
    optimizer: dict[int, dict[str, torch.Tensor]]
    gathered: dict[int, dict[int, torch.Tensor]]


def _check_size(blob: bytes, room_bytes: int) -> None:
    """Looks at what the bytes claim before anybody reads them."""
    claimed = int.from_bytes(blob[:_HEADER_BYTES], "little")
    if claimed > _LONGEST_HEADER or claimed > len(blob):
        raise StateMismatch(
            f"{len(blob)} bytes were received that are no exported session state: a header of {claimed} bytes"
        )
    if len(blob) > room_bytes + 2 * _LONGEST_HEADER:
        raise StateMismatch(f"a state of {len(blob)} bytes was received, this session's has {room_bytes} at most")


def _check_moments(found: dict[int, dict[str, torch.Tensor]], optimizer: str) -> None:
    """Each parameter has what its optimizer goes on with, and nothing else."""
    wanted = _MOMENTS.get(optimizer, set())
    for place, moments in found.items():
        if moments.keys() != wanted:
            raise StateMismatch(
                f"the state holds {sorted(moments)} of the optimizer for parameter {place}, expected {sorted(wanted)}"
            )


def _opened(blob: bytes) -> tuple[dict[str, torch.Tensor], _Facts]:
    try:
        tensors = load(blob)
        size = int.from_bytes(blob[:_HEADER_BYTES], "little")
        metadata = json.loads(blob[_HEADER_BYTES : _HEADER_BYTES + size])["__metadata__"]
        facts = _Facts.model_validate_json(metadata["teaching"])
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise StateMismatch(f"{len(blob)} bytes were received that are no exported session state: {reason}") from error
    if facts.version != _VERSION:
        raise StateMismatch(f"the state is of version {facts.version}, this server reads version {_VERSION}")
    return tensors, facts


def _parted(tensors: dict[str, torch.Tensor]) -> _Parts:
    parts = _Parts({}, {}, {})
    for name, value in tensors.items():
        kind, _, rest = name.partition(".")
        place, _, moment = rest.partition(".")
        if kind == "codec":
            parts.codec[rest] = value
        elif kind == "optimizer" and place.isdecimal() and moment:
            parts.optimizer.setdefault(int(place), {})[moment] = value
        elif kind == "gathered" and place.isdecimal() and (moment.isdecimal() or rest == place):
            parts.gathered.setdefault(int(moment or 0), {})[int(place)] = value
        else:
            raise StateMismatch(f"the state holds a tensor {name!r}, which belongs to no part of a session")
    return parts


def _placed(parameters: list[torch.nn.Parameter], found: dict[int, torch.Tensor]) -> Grads:
    """Gathered gradients in the parameters' order, on their device."""
    fitting = {place: _fitting(parameters, place, {"grad": grad})["grad"] for place, grad in found.items()}
    grads = [fitting.get(place) for place in range(len(parameters))]
    return [None if grad is None else grad.to(parameters[0].device) for grad in grads]


def _fitting(
    parameters: list[torch.nn.Parameter], place: int, found: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """The tensors of one parameter, if they have its shape (an optimizer's step has none)."""
    for name, value in found.items():
        wanted = parameters[place].shape if place < len(parameters) else None
        if name == "step" and place < len(parameters):
            wanted = torch.Size()
        if wanted != value.shape or not value.is_floating_point():
            raise StateMismatch(
                f"{name} of parameter {place} is {value.dtype} {list(value.shape)} in the state, "
                f"expected {'no such parameter' if wanted is None else f'float {list(wanted)}'}"
            )
    return found


def _check_facts(session: Session, facts: _Facts, model_hash: str) -> None:
    if facts.model_hash != model_hash:
        raise StateMismatch(
            f"the state was exported from a teacher with weights {facts.model_hash[:12]}, this one has {model_hash[:12]}; "
            "connect to a server of the same model"
        )
    ours = json.loads(json.dumps(dataclasses.asdict(session.settings)))
    theirs = facts.settings
    different = sorted(name for name in ours if name not in _FREE and ours[name] != theirs.get(name))
    if different:
        named = ", ".join(f"{name} {theirs.get(name)!r} (session has {ours[name]!r})" for name in different)
        raise StateMismatch(f"the state has other settings: {named}; enrol with the settings of the state")


def _check_tensors(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    for name in sorted(ours.keys() | theirs.keys()):
        have, got = ours.get(name), theirs.get(name)
        if have is None or got is None or have.shape != got.shape or have.dtype != got.dtype:
            shapes = [None if each is None else list(each.shape) for each in (got, have)]
            raise StateMismatch(f"codec tensor {name!r} has shape {shapes[0]} in the state, {shapes[1]} in the session")
