from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from student_client.files import replace_folder
from student_client.training.checkpoints import Checkpoint, checkpoint_folders, load_checkpoint, save_checkpoint
from teaching_protocol.errors import ConfigError, StateMismatch

CONFIG = {"training": {"lr": 1e-3, "betas": (0.9, 0.999)}, "teacher": None}


def checkpoint(step: int, best: Path | None = None) -> Checkpoint:
    tensors = {
        "student": {"weight": torch.full((2, 3), float(step)), "half": torch.ones(2, dtype=torch.bfloat16)},
        "random": {"cpu": torch.get_rng_state()},
        "empty": {},
    }
    return Checkpoint(step, CONFIG, {"step": step, "seconds": 0.1 + 0.2}, tensors, (b"session", b"other"), best)


def test_reads_back_what_was_written(tmp_path: Path) -> None:
    best = tmp_path / "student"
    best.mkdir()
    (best / "student.json").write_text("{}")
    written = checkpoint(7, best)
    save_checkpoint(tmp_path / "checkpoints", written)
    found = load_checkpoint(tmp_path / "checkpoints", CONFIG)
    assert (found.step, found.facts, found.sessions) == (7, written.facts, (b"session", b"other"))
    assert found.tensors.keys() == written.tensors.keys()
    for group, tensors in written.tensors.items():
        assert found.tensors[group].keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert found.tensors[group][name].dtype == tensor.dtype
            assert torch.equal(found.tensors[group][name], tensor)
    assert found.best is not None
    assert (found.best / "student.json").read_text() == "{}"


def test_a_checkpoint_without_teacher_and_best_has_neither(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, replace(checkpoint(1), sessions=()))
    found = load_checkpoint(tmp_path, CONFIG)
    assert found.sessions == ()
    assert found.best is None


def test_keeps_the_newest_two_and_no_draft(tmp_path: Path) -> None:
    (tmp_path / ".step-00000001.123").mkdir()
    for step in (1, 2, 3, 10):
        save_checkpoint(tmp_path, checkpoint(step))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000003", "step-00000010"]
    assert load_checkpoint(tmp_path, CONFIG).step == 10


def test_writes_a_step_again(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, checkpoint(3))
    save_checkpoint(tmp_path, replace(checkpoint(3), facts={"again": True}))
    assert load_checkpoint(tmp_path, CONFIG).facts == {"again": True}


@pytest.mark.parametrize("victim", ["student.safetensors", "session-1.safetensors", "checkpoint.json"])
@pytest.mark.parametrize("harm", ["cut", "gone"])
def test_passes_over_a_damaged_checkpoint(tmp_path: Path, victim: str, harm: str) -> None:
    for step in (1, 2):
        save_checkpoint(tmp_path, checkpoint(step))
    path = checkpoint_folders(tmp_path)[-1] / victim
    if harm == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-3])
    assert load_checkpoint(tmp_path, CONFIG).step == 1


def test_a_changed_bit_is_damage(tmp_path: Path) -> None:
    place = save_checkpoint(tmp_path, checkpoint(1))
    path = place / "student.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(StateMismatch, match="start the run anew"):
        load_checkpoint(tmp_path, CONFIG)


def test_a_draft_is_no_checkpoint(tmp_path: Path) -> None:
    place = save_checkpoint(tmp_path, checkpoint(1))
    place.rename(tmp_path / ".step-00000001.9")
    with pytest.raises(ConfigError, match="nothing to resume"):
        load_checkpoint(tmp_path, CONFIG)


def test_refuses_another_version(tmp_path: Path) -> None:
    manifest = save_checkpoint(tmp_path, checkpoint(1)) / "checkpoint.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"version": 99}))
    with pytest.raises(StateMismatch, match="version 99"):
        load_checkpoint(tmp_path, CONFIG)


def test_refuses_another_configuration_and_names_the_field(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, checkpoint(1))
    with pytest.raises(ConfigError, match=r"training\.lr: received 0\.5, expected 0\.001"):
        load_checkpoint(tmp_path, {**CONFIG, "training": {"lr": 0.5, "betas": (0.9, 0.999)}})


def test_an_unwritable_folder_is_a_config_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        save_checkpoint(tmp_path / "file" / "checkpoints", checkpoint(1))


def test_replaces_a_folder_whole(tmp_path: Path) -> None:
    for name in ("draft", "place"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_text(name)
    replace_folder(tmp_path / "draft", tmp_path / "place")
    assert [path.name for path in tmp_path.iterdir()] == ["place"]
    assert [path.name for path in (tmp_path / "place").iterdir()] == ["draft"]
