"""Disks that are full or read-only, and teachers whose weights changed: a clear sentence, and nothing overwritten."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from student_client.config import RunConfig
from student_client.training.checkpoints import checkpoint_folders
from student_client.training.runs import open_run
from teacher_server.actor import TeacherActor
from teacher_server.local import local_teacher
from teaching_protocol.errors import ConfigError, StateMismatch
from tests.chaos.world import (
    Ended,
    TeacherProcess,
    assert_same,
    chaos_config,
    ended,
    log_of,
    student_process,
    wait_for_step,
)
from tests.unit.student_client.run_setup import quiet, run_config

Models = Callable[[str], Path]
Whole = Callable[..., Ended]
Tree = dict[str, bytes]


@pytest.fixture
def teach(model_folder: Models) -> Callable[[], TeacherActor]:
    return lambda: local_teacher(str(model_folder("bert")), device="cpu", entry=1, exit=3, deterministic=True)


def train(config: RunConfig, teacher: TeacherActor, steps: int | None = None, resume: bool = False) -> Any:
    with open_run(config, teachers=[teacher], progress=quiet(), resume=resume) as trainer:
        trainer.run(steps)
        return {name: value.clone() for name, value in trainer.student.state_dict().items()}


def content(folder: Path) -> Tree:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def mounted(*words: str) -> None:
    done = subprocess.run(["mount", *words], capture_output=True, text=True, timeout=20, check=False)
    if done.returncode:
        pytest.skip(f"this machine mounts nothing for tests: {done.stderr.strip()}")


@contextmanager
def full_disk(folder: Path) -> Iterator[Path]:
    """A small file system: 8 MiB of memory, as only root can mount it."""
    folder.mkdir()
    mounted("-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder))
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True, timeout=20)


def test_a_disk_that_fills_up(tmp_path: Path, teach: Callable[[], TeacherActor]) -> None:
    """The run ends with a sentence; the checkpoint before is whole, and with room again it goes on as if nothing was."""
    whole = train(run_config(tmp_path, "whole", "talking"), teach())
    with full_disk(tmp_path / "disk") as disk:
        config = run_config(tmp_path, "disk/run", "talking")
        train(config, teach(), steps=7)
        good = content(checkpoint_folders(config.output / "checkpoints")[-1])
        filler = disk / "filler"
        with suppress(OSError), filler.open("wb") as file:
            while True:
                file.write(bytes(4096))
                file.flush()
        with pytest.raises(ConfigError, match=r"cannot be written.*No space left on device.*free space"):
            train(config, teach(), resume=True)
        assert content(checkpoint_folders(config.output / "checkpoints")[-1]) == good
        assert not list((config.output / "checkpoints").glob(".*")), "no draft takes the room"
        filler.unlink()
        found = train(config, teach(), resume=True)
    assert all(torch.equal(value, whole[name]) for name, value in found.items())


@pytest.mark.parametrize("limit_bytes", [100, 20_000])
def test_a_file_that_may_not_grow(tmp_path: Path, teach: Callable[[], TeacherActor], limit_bytes: int) -> None:
    """The same without root: a limit on the size of files, which cuts them short as a full disk does."""
    whole = train(run_config(tmp_path, "whole", "talking"), teach())
    config = run_config(tmp_path, "run", "talking")
    train(config, teach(), steps=7)
    good = content(checkpoint_folders(config.output / "checkpoints")[-1])
    teacher = teach()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, before[1]))
    try:
        with pytest.raises(ConfigError, match=r"cannot be written.*File too large.*free space"):
            train(config, teacher, resume=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert content(checkpoint_folders(config.output / "checkpoints")[-1]) == good
    found = train(config, teach(), resume=True)
    assert all(torch.equal(value, whole[name]) for name, value in found.items())
    assert not list(config.output.glob(".student*"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts read-only")
def test_a_folder_that_is_read_only(tmp_path: Path, teach: Callable[[], TeacherActor]) -> None:
    config = run_config(tmp_path, "run", "talking")
    train(config, teach(), steps=7)
    before = content(config.output)
    mounted("--bind", str(config.output), str(config.output))
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", str(config.output)], check=True, timeout=20)
        with pytest.raises(ConfigError, match="Read-only file system"):
            train(config, teach(), resume=True)
    finally:
        subprocess.run(["umount", "-l", str(config.output)], check=True, timeout=20)
    assert content(config.output) == before


def test_one_process_trains_in_a_folder(tmp_path: Path, teach: Callable[[], TeacherActor]) -> None:
    config = run_config(tmp_path, "run", "talking")
    with open_run(config, teachers=[teach()], progress=quiet()) as trainer:
        trainer.run(7)
        with pytest.raises(ConfigError, match="where another process trains"):
            train(config, teach(), resume=True)
    train(config, teach(), resume=True)


def other_weights(model: Path, folder: Path) -> Path:
    shutil.copytree(model, folder)
    changed = AutoModelForSequenceClassification.from_pretrained(folder)
    with torch.no_grad():
        next(iter(changed.parameters())).add_(0.01)
    changed.save_pretrained(folder)
    return folder


def test_weights_that_change_under_a_session(model_folder: Models, whole: Whole, tmp_path: Path) -> None:
    """The address serves another model after a restart: the run ends with its last cut on disk, which that model may not have."""
    steps = 50
    other = other_weights(model_folder("bert"), tmp_path / "other")
    with TeacherProcess(model_folder("bert")) as teacher:
        config = chaos_config(tmp_path, "broken", teacher.address, steps, training__checkpoint_every=1000)
        with student_process(config) as student:
            wait_for_step(config, student, 12)
            teacher.kill()
            with TeacherProcess(other, teacher.port) as impostor:
                student.join(60)
                assert student.exitcode == 1
                assert "serves now where" in log_of(config)
                written = content(config.output / "checkpoints")
                assert written, "the newest cut became a checkpoint"
                with student_process(config, resume=True) as again:
                    again.join(60)
                    assert again.exitcode == 1
                assert "the run was started with a teacher of weights" in log_of(config)
                assert content(config.output / "checkpoints") == written
                impostor.kill()
        teacher.start()
        with student_process(config, resume=True) as student:
            assert_same(ended(config, student), whole(steps), steps)


def test_a_one_way_run_is_not_resumed_with_other_weights(
    tmp_path: Path, model_folder: Models, teach: Callable[[], TeacherActor]
) -> None:
    """It has no session state that the server could compare."""
    config = run_config(tmp_path, "run", "rkd")
    train(config, teach(), steps=7)
    other = local_teacher(str(other_weights(model_folder("bert"), tmp_path / "other")), entry=1, exit=3)
    with pytest.raises(StateMismatch, match=r"weights .* serves now; serve the same weights again"):
        train(config, other, resume=True)
