"""A run's checkpoints: one consistent cut of both sides in a folder of its own; knows no model and no trainer.

A checkpoint is safetensors and JSON, with the size and hash of every file. It is written beside its
place, brought to the disk and renamed, so that what has its name is whole; the newest two are kept.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from student_client.files import replace_folder, sync
from teaching_protocol.errors import ConfigError, StateMismatch

__all__ = ["VERSION", "Checkpoint", "checkpoint_folders", "load_checkpoint", "save_checkpoint"]

Tensors = Mapping[str, torch.Tensor]

VERSION = 2
"""Version of the layout on disk."""

_KEPT = 2
_MANIFEST, _BEST = "checkpoint.json", "best"


@dataclass(frozen=True)
class Checkpoint:
    """Everything a run needs to go on, taken between two steps.

    Attributes:
        step: optimizer steps done.
        config: what a resumed run must share (`RunConfig.identity`).
        facts: positions and bookkeeping, JSON values.
        tensors: groups of tensors by name, such as student, method, optimizer, random.
        sessions: the exported session of each teacher at the same step, in the order of the teachers.
        best: folder of the best student so far; None before the first validation.
    """

    step: int
    config: Mapping[str, Any]
    facts: Mapping[str, Any]
    tensors: Mapping[str, Tensors]
    sessions: tuple[bytes, ...] = ()
    best: Path | None = None


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> Path:
    """Writes a checkpoint to its own folder under `folder`, and removes all but the newest two.

    Raises:
        ConfigError: the folder cannot be written.
    """
    place = folder / f"step-{checkpoint.step:08d}"
    draft = folder / f".{place.name}.{os.getpid()}"
    try:
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        sync(folder.parent)
        _write(draft, checkpoint)
        replace_folder(draft, place)
        _prune(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(draft, ignore_errors=True)  # what is half written must not take the room of what is whole
        raise ConfigError(
            f"the checkpoint {place} cannot be written: {error}; those before it are whole; free space, or give "
            "another output, then go on with --resume"
        ) from error
    return place


def load_checkpoint(folder: Path, config: Mapping[str, Any]) -> Checkpoint:
    """Reads the newest whole checkpoint under `folder`; a damaged one is passed over for the one before.

    Raises:
        ConfigError: there is none, or it is of a run with another configuration.
        StateMismatch: all are damaged, or one is of a version this release does not read.
    """
    found = checkpoint_folders(folder)
    if not found:
        raise ConfigError(f"nothing to resume: {folder} holds no checkpoint; start the run without --resume")
    damage = []
    for place in reversed(found):
        try:
            return _read(place, config)
        except _Damaged as error:
            damage.append(str(error))
    raise StateMismatch(f"no checkpoint is whole: {'; '.join(damage)}; start the run anew")


def checkpoint_folders(folder: Path) -> list[Path]:
    """The checkpoints under a folder, oldest first; drafts are none."""
    return sorted(folder.glob("step-*[0-9]"))


class _Damaged(Exception):
    """A checkpoint that is not whole."""


def _write(draft: Path, checkpoint: Checkpoint) -> None:
    for group, tensors in checkpoint.tensors.items():
        save_file(_apart(tensors), draft / _file(group))
    for place, session in enumerate(checkpoint.sessions):
        (draft / _file(f"session-{place}")).write_bytes(session)
    if checkpoint.best is not None:
        shutil.copytree(checkpoint.best, draft / _BEST)
    manifest = {
        "version": VERSION,
        "step": checkpoint.step,
        "config": checkpoint.config,
        "facts": checkpoint.facts,
        "groups": sorted(checkpoint.tensors),
        "sessions": len(checkpoint.sessions),
        "files": {name: _mark(draft / name) for name in _files(draft)},
    }
    (draft / _MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def _read(place: Path, config: Mapping[str, Any]) -> Checkpoint:
    manifest = _manifest(place)
    _check_config(place, manifest["config"], config)
    for name, mark in manifest["files"].items():
        if not (place / name).is_file() or _mark(place / name) != mark:
            raise _Damaged(f"{place / name} is missing or not what was written")
    try:
        tensors = {group: load_file(place / _file(group)) for group in manifest["groups"]}
    except (OSError, SafetensorError) as error:
        raise _Damaged(f"{place}: {error}") from error
    best = place / _BEST
    return Checkpoint(
        manifest["step"],
        manifest["config"],
        manifest["facts"],
        tensors,
        tuple((place / _file(f"session-{number}")).read_bytes() for number in range(manifest["sessions"])),
        best if best.is_dir() else None,
    )


def _manifest(place: Path) -> dict[str, Any]:
    path = place / _MANIFEST
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        version = manifest["version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _Damaged(f"{path} cannot be read ({error})") from error
    if version != VERSION:
        raise StateMismatch(
            f"{place} is a checkpoint of version {version}, this release reads version {VERSION}; "
            "go on with the release that wrote it, or start the run anew"
        )
    return manifest


def _check_config(place: Path, written: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    before, now = _flat(written), _flat(json.loads(json.dumps(config)))
    different = [
        f"{field}: received {now.get(field)!r}, expected {before.get(field)!r}"
        for field in sorted(before.keys() | now.keys())
        if before.get(field) != now.get(field)
    ]
    if different:
        raise ConfigError(
            f"{place} is of another configuration: {'; '.join(different)}; resume with the run's own config.json, "
            "or give another output"
        )


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found


def _prune(folder: Path) -> None:
    for old in [*checkpoint_folders(folder)[:-_KEPT], *folder.glob(".step-*")]:
        shutil.rmtree(old, ignore_errors=True)


def _file(group: str) -> str:
    return f"{group}.safetensors"


def _files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _mark(path: Path) -> list[int | str]:
    with path.open("rb") as file:
        return [path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()]


def _apart(tensors: Tensors) -> dict[str, torch.Tensor]:
    """Tensors on the host, each in memory of its own: a head that is tied to the table of tokens is written twice."""
    found: dict[str, torch.Tensor] = {}
    places: set[int] = set()
    for name, value in tensors.items():
        value = value.detach().cpu().contiguous()
        found[name] = value.clone() if value.numel() and value.data_ptr() in places else value
        places.add(value.data_ptr())
    return found
