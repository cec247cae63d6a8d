"""`DistillationTrainer` under torchrun: two processes and one session end as one process with the whole batch."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.integration.gate import poll
from tests.integration.loops import student_folder
from tests.integration.processes import ServerProcess
from tests.integration.school import School
from tests.integration.trainer_processes import METHOD, forked, launched, spec, trained
from tests.unit.student_client.run_setup import write_csv


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return student_folder(tmp_path_factory.mktemp("student"))


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_csv(tmp_path_factory.mktemp("rows"), rows=64)


@pytest.fixture(scope="module")
def whole(school: School, student: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process with the whole batch."""
    output = tmp_path_factory.mktemp("whole")
    trained(spec(student, rows, school.address, output))
    return output


def assert_close(found: Path, wanted: Path, step: int = 8) -> None:
    """Student, codec and session."""
    ours, theirs = load_file(found / "end/model.safetensors"), load_file(wanted / "end/model.safetensors")
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, atol=1e-5, rtol=1e-4, msg=name)
    sides = [next((folder / f"checkpoint-{step}/distillation").glob("step-*")) for folder in (found, wanted)]
    for name in ("method.safetensors", "session-0.safetensors"):
        ours, theirs = (load_file(side / name) for side in sides)
        for key, value in theirs.items():
            if value.is_floating_point() and "optimizer" not in key:
                torch.testing.assert_close(ours[key], value, atol=1e-5, rtol=1e-4, msg=f"{name} {key}")


def halves(student: Path, rows: Path, address: str, output: Path, **fields: Any) -> dict[str, Any]:
    return spec(student, rows, address, output, **{"per_device_train_batch_size": 4} | fields)


def test_two_processes_are_one_with_the_whole_batch(
    school: School, student: Path, rows: Path, whole: Path, tmp_path: Path
) -> None:
    """Student, the codec of both sides, and one session at the teacher, which takes each step once."""
    output = tmp_path / "both"
    assert forked(halves(student, rows, school.address, output)) == [0, 0], Path(f"{output}.log").read_text()[-3000:]
    assert_close(output, whole)


KINDS_OF_DDP: dict[str, dict[str, Any]] = {
    "torchrun": {},
    "accumulated": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
    "checkpointed": {"activation_checkpointing": True},
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS_OF_DDP)
def test_torchrun_is_one_with_the_whole_batch_and_resumed(
    school: School, student: Path, rows: Path, whole: Path, tmp_path: Path, kind: str
) -> None:
    given = halves(student, rows, school.address, tmp_path, **KINDS_OF_DDP[kind])
    ends_as(given, whole)


@pytest.mark.slow
def test_a_killed_teacher_ends_all_processes_and_they_go_on_later(
    model_folder: Callable[[str], Path], student: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    rows = write_csv(tmp_path, rows=640)
    settings = {"model": str(model_folder("bert")), "deterministic": True, "metrics_port": -1}
    servers = [ServerProcess({"teacher": settings}) for _ in range(2)]
    for server in servers:
        request.addfinalizer(server.close)
    first, second = (server.addresses["teacher"].name for server in servers)
    trained(spec(student, rows, second, tmp_path / "whole"))
    given = halves(student, rows, first, tmp_path / "found")
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(launched, given)
        poll(
            lambda: (tmp_path / "found/checkpoint-12/trainer_state.json").exists() or running.done(),
            "a checkpoint",
            120.0,
        )
        servers[0].kill()
        done = running.result()
    assert done.returncode != 0
    assert "start all processes again, with resume_from_checkpoint" in done.stderr
    assert not (tmp_path / "found/checkpoint-80").exists()
    for folder in (tmp_path / "found").glob("checkpoint-*"):
        if not (folder / "trainer_state.json").exists():  # which is written last
            shutil.rmtree(folder)
    done = launched(given | {"teacher": given["teacher"] | {"address": second}, "resume": True})
    assert done.returncode == 0, done.stderr[-3000:]
    assert_close(tmp_path / "found", tmp_path / "whole", step=80)


def ends_as(given: dict[str, Any], wanted: Path) -> None:
    """A run, and the same resumed in its middle."""
    output = Path(given["output"])
    for resume in (False, True):
        done = launched(given | {"resume": resume})
        assert done.returncode == 0, done.stderr[-3000:]
        assert_close(output, wanted)
        shutil.rmtree(output / "checkpoint-8")


FSDP = {"fsdp": True, "fsdp_config": {"version": 2, "transformer_layer_cls_to_wrap": ["BertLayer"]}}
SHARDED = {"method": METHOD | {"w_answer_task": 0, "w_answer_labels": 0}}
KINDS: dict[str, dict[str, Any]] = {
    "fsdp2": FSDP,
    "fsdp1": {"fsdp": True, "fsdp_config": FSDP["fsdp_config"] | {"version": 1, "sync_module_states": False}},
    "fsdp2 sharded state": {
        "fsdp": True,
        "fsdp_config": FSDP["fsdp_config"] | {"state_dict_type": "SHARDED_STATE_DICT"},
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_sharded_students_are_one_process_with_the_whole_batch(
    school: School, student: Path, rows: Path, tmp_path: Path, kind: str
) -> None:
    """And resumed from the middle they end the same."""
    trained(spec(student, rows, school.address, tmp_path / "whole", **SHARDED))
    given = halves(student, rows, school.address, tmp_path / "found", **SHARDED, **KINDS[kind])
    ends_as(given, tmp_path / "whole")
