"""A session's whole state as safetensors bytes and back; knows no call and no file.

The bytes hold the codec, the optimizer's moments, gathered gradients, and as metadata the settings,
the step and the hash of the teacher's weights. No pickle.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from teacher_server.sessions import Session
from teaching_protocol.errors import StateMismatch

__all__ = ["export_state", "import_state"]

_VERSION = 1
_HEADER_BYTES = 8


def export_state(session: Session, model_hash: str) -> bytes:
    """Gives the state between two calls; call it from the thread that owns the session."""
    tensors = {f"codec.{name}": value for name, value in session.codec.state_dict().items()}
    optimizer = session.optimizer.state_dict()
    for place, moments in optimizer["state"].items():
        tensors |= {
            f"optimizer.{place}.{name}": torch.as_tensor(value) for name, value in moments.items() if value is not None
        }
    for place, grad in enumerate(session.gathered):
        if grad is not None:
            tensors[f"gathered.{place}"] = grad
    facts = {
        "version": _VERSION,
        "step": session.step,
        "model_hash": model_hash,
        "settings": dataclasses.asdict(session.settings),
        "gathered": len(session.gathered),
        "groups": optimizer["param_groups"],
    }
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    return bytes(save(tensors, {"teaching": json.dumps(facts, sort_keys=True)}))


def import_state(session: Session, blob: bytes, model_hash: str) -> None:
    """Replaces the session's state by exported bytes; on an error nothing has changed.

    Raises:
        StateMismatch: bytes that are no state, of another version, teacher or settings, or with
            tensors that do not fit.
    """
    tensors, facts = _opened(blob)
    _check_facts(session, facts, model_hash)
    codec = {name.removeprefix("codec."): value for name, value in tensors.items() if name.startswith("codec.")}
    _check_tensors(session.codec.state_dict(), codec)
    places = len(session.parameters())
    moments: dict[int, dict[str, torch.Tensor]] = {}
    gathered: list[torch.Tensor | None] = [None] * (places if facts["gathered"] else 0)
    for name, value in tensors.items():
        kind, _, rest = name.partition(".")
        if kind == "optimizer":
            place, _, moment = rest.partition(".")
            moments.setdefault(int(place), {})[moment] = value
        elif kind == "gathered":
            gathered[int(rest)] = value.to(session.parameters()[int(rest)].device)
    session.optimizer.load_state_dict({"state": moments, "param_groups": facts["groups"]})
    session.codec.load_state_dict(codec)
    session.gathered = gathered
    session.step = int(facts["step"])


def _opened(blob: bytes) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    try:
        tensors = load(blob)
        size = int.from_bytes(blob[:_HEADER_BYTES], "little")
        facts = json.loads(json.loads(blob[_HEADER_BYTES : _HEADER_BYTES + size])["__metadata__"]["teaching"])
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise StateMismatch(f"{len(blob)} bytes were received that are no exported session state: {error}") from error
    if facts.get("version") != _VERSION:
        raise StateMismatch(f"the state is of version {facts.get('version')}, this server reads version {_VERSION}")
    return tensors, facts


def _check_facts(session: Session, facts: dict[str, Any], model_hash: str) -> None:
    if facts["model_hash"] != model_hash:
        raise StateMismatch(
            f"the state was exported from a teacher with weights {facts['model_hash'][:12]}, this one has {model_hash[:12]}; "
            "connect to a server of the same model"
        )
    ours = json.loads(json.dumps(dataclasses.asdict(session.settings)))
    theirs = facts["settings"]
    different = sorted(name for name in ours if name != "seed" and ours[name] != theirs.get(name))
    if different:
        named = ", ".join(f"{name} {theirs.get(name)!r} (session has {ours[name]!r})" for name in different)
        raise StateMismatch(f"the state has other settings: {named}; enrol with the settings of the state")


def _check_tensors(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    for name in sorted(ours.keys() | theirs.keys()):
        have, got = ours.get(name), theirs.get(name)
        if have is None or got is None or have.shape != got.shape or have.dtype != got.dtype:
            shapes = [None if each is None else list(each.shape) for each in (got, have)]
            raise StateMismatch(f"codec tensor {name!r} has shape {shapes[0]} in the state, {shapes[1]} in the session")
