"""A student of two processes and one session: real servers, torchrun, kill -9; it ends as one process with the whole batch."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import torch

from student_client.config import RunConfig
from teaching_protocol.errors import ServiceError, TeachingError
from tests.calls import Caller, attempt
from tests.chaos.rank_world import ended_with, rank_log, rank_processes
from tests.chaos.world import (
    Ended,
    TeacherProcess,
    assert_same,
    chaos_config,
    ended,
    free_port,
    student_process,
    wait_for_step,
)
from tests.integration.gate import poll
from tests.integration.processes import ROOT

Models = Callable[[str], Path]

# what several ranks do as one process does: no dropout, losses that are means over rows, rows that all have labels
PLAIN = {
    "student__dropout": 0.0,
    "method__consistency": "cross",
    "method__answer_dropout": 0.0,
    "method__message_dropout": 0.0,
    "data__labelled": 61,
    "data__unlabelled": 0,
    "training__labelled_share": None,
    "training__batch_size": 9,  # no even number, and the last batch of an epoch has 7 rows
    "teacher__compression": "none",
    "training__rank_timeout_s": 60.0,
}


def ranked(folder: Path, output: str, teacher: TeacherProcess, steps: int, **fields: object) -> RunConfig:
    return chaos_config(folder, output, teacher.address, steps, **PLAIN | fields)


def assert_close(found: RunConfig, wanted: RunConfig) -> None:
    ours, theirs = ended_with(found), ended_with(wanted)
    for group, tensors in theirs.items():
        assert ours[group].keys() == tensors.keys()
        for name, value in tensors.items():
            if not name.startswith("optimizer."):
                torch.testing.assert_close(ours[group][name], value, atol=1e-5, rtol=1e-4, msg=f"{group} {name}")


TORCHRUN = ["torch.distributed.run", "--nproc-per-node", "2", "--master-port"]
ACCELERATE = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
ACCELERATE += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port"]
LAUNCHERS = [
    pytest.param(TORCHRUN, id="torchrun"),
    pytest.param(ACCELERATE, id="accelerate", marks=pytest.mark.slow),  # which starts torchrun
]


def launched(launcher: list[str], config: RunConfig, *words: str) -> list[str]:
    """The command line that trains a run in two processes, as docs/scale.md has it."""
    path = config.output.parent / f"{config.output.name}.json"
    path.write_text(config.model_dump_json())
    train = ["-m", "student_client", "train", "--config", str(path), *words]
    return [sys.executable, "-m", *launcher, str(free_port()), *train]


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_launchers_ranks_end_as_one_process_with_the_whole_batch(
    launcher: list[str], model_folder: Models, tmp_path: Path
) -> None:
    with TeacherProcess(model_folder("bert")) as teacher:
        alone = ranked(tmp_path, "alone", teacher, 10)
        both = ranked(tmp_path, "both", teacher, 10)
        words = launched(launcher, both)
        with student_process(alone) as student:
            done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=200)
            one = ended(alone, student)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("talking: test accuracy") == 1, "one rank speaks"
    assert_close(both, alone)
    lines = [json.loads(line) for line in (both.output / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == one.steps
    for line, loss in zip(lines, one.losses, strict=True):
        assert line["loss"] == pytest.approx(loss, abs=0.2)  # a mean of two means
    result = json.loads((both.output / "result.json").read_text())
    assert result["teacher_rows"] == one.result["teacher_rows"]
    assert result["test_loss"] == pytest.approx(one.result["test_loss"], abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [pytest.param(TORCHRUN, id="torchrun"), pytest.param(ACCELERATE, id="accelerate")])
def test_a_rank_killed_under_a_launcher_ends_all_with_its_name(
    launcher: list[str], model_folder: Models, tmp_path: Path
) -> None:
    """No rank is left behind, none hangs, and all go on from the checkpoint when they are started again."""
    with TeacherProcess(model_folder("bert"), settings={"rank_wait_s": 5.0, "lease_s": 5.0}) as teacher:
        config = ranked(tmp_path, "broken", teacher, 120, training__checkpoint_every=5)
        words = launched(launcher, config)
        process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        checkpoints = config.output / "checkpoints"
        poll(lambda: list(checkpoints.glob("step-*")) or process.poll() is not None, "they train", 120.0)
        ranks = psutil.Process(process.pid).children(recursive=True)
        (second,) = [each for each in ranks if each.environ().get("RANK") == "1"]
        second.kill()
        said, _ = process.communicate(timeout=60)
        assert process.returncode != 0
        assert "Signal 9 (SIGKILL)" in said, said[-3000:]
        _, left = psutil.wait_procs(ranks, timeout=30)
        assert not left
        more = launched(launcher, config, "--resume")
        done = subprocess.run(more, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "goes on after step" in done.stdout


@pytest.mark.slow
def test_several_microbatches_a_step_weigh_by_their_rows(model_folder: Models, tmp_path: Path) -> None:
    """The last batch of an epoch meets a whole one in a step, and a rank has no row of a batch of one."""
    fields = {"training__accumulation": 2, "training__batch_size": 4}  # 61 rows: the 16th batch has one
    with TeacherProcess(model_folder("bert")) as teacher:
        alone, both = (ranked(tmp_path, name, teacher, 9, **fields) for name in ("alone", "both"))
        with student_process(alone) as student, rank_processes(both) as ranks:
            ended(alone, student)
            ended(both, ranks[0])
    assert_close(both, alone)


def ranked_end(config: RunConfig, resume: bool = False) -> Ended:
    with rank_processes(config, resume=resume) as ranks:
        found = ended(config, ranks[0])
        ranks[1].join(60)
    other = json.loads((config.output.parent / f"{config.output.name}.rank1.json").read_text())
    assert other == found.weights, "both ranks have the same student, to the bit"
    return found


@pytest.fixture(scope="module")
def whole(model_folder: Models, tmp_path_factory: pytest.TempPathFactory) -> Ended:
    """A run of two ranks that nothing disturbs, with dropout."""
    with TeacherProcess(model_folder("bert")) as teacher:
        config = ranked(tmp_path_factory.mktemp("whole"), "whole", teacher, 24, student__dropout=0.1)
        return ranked_end(config)


def test_two_runs_give_the_same_bits_and_a_killed_teacher_costs_none(
    model_folder: Models, tmp_path: Path, whole: Ended
) -> None:
    with TeacherProcess(model_folder("bert")) as teacher:
        config = ranked(tmp_path, "broken", teacher, 24, student__dropout=0.1)
        with rank_processes(config) as ranks:
            for step in (7, 16):
                wait_for_step(config, ranks[0], step)
                teacher.kill()
                teacher.start()
            broken = ended(config, ranks[0])
            ranks[1].join(60)
    assert_same(broken, whole, 24)
    assert broken.result["recoveries"] == 2


def test_a_drained_teacher_costs_no_bit_and_no_rank_an_error(
    model_folder: Models, tmp_path: Path, whole: Ended
) -> None:
    with TeacherProcess(model_folder("bert"), is_command=True) as teacher:
        config = ranked(tmp_path, "drained", teacher, 24, student__dropout=0.1)
        with rank_processes(config) as ranks:
            wait_for_step(config, ranks[0], 7)
            teacher.terminate()
            assert teacher.exit_code() == 0
            assert ranks[0].exitcode is None, "it has steps to go"
            teacher.start()
            drained = ended(config, ranks[0])
            ranks[1].join(60)
            assert ranks[1].exitcode == 0
    assert_same(drained, whole, 24)
    assert (drained.result["moves"], drained.result["recoveries"]) == (1, 0)
    for rank in (0, 1):
        assert "Error" not in rank_log(config, rank).read_text()


def test_a_killed_rank_is_an_error_for_the_others_and_all_go_on_later(
    model_folder: Models, tmp_path: Path, whole: Ended
) -> None:
    with TeacherProcess(model_folder("bert"), settings={"rank_wait_s": 5.0, "lease_s": 5.0}) as teacher:
        config = ranked(tmp_path, "broken", teacher, 24, student__dropout=0.1, training__checkpoint_every=6)
        with rank_processes(config) as ranks:
            wait_for_step(config, ranks[0], 9)
            ranks[1].kill()
            began = time.monotonic()
            ranks[0].join(60)
            assert ranks[0].exitcode == 1
            assert time.monotonic() - began < 30
            said = rank_log(config, 0).read_text()
            assert "RankLost" in said
            assert "rank 1 of 2" in said or "rank 0 of 2 has lost another rank" in said
        assert_same(ranked_end(config, resume=True), whole, 24)


def test_a_rank_that_stands_still_is_an_error_in_time(model_folder: Models, tmp_path: Path) -> None:
    with TeacherProcess(model_folder("bert"), settings={"rank_wait_s": 2.0}) as teacher:
        config = ranked(tmp_path, "still", teacher, 10_000, training__rank_timeout_s=2.0)
        with rank_processes(config) as ranks:
            wait_for_step(config, ranks[0], 2)
            assert ranks[1].pid is not None
            os.kill(ranks[1].pid, signal.SIGSTOP)
            ranks[0].join(60)
            assert ranks[0].exitcode == 1
            assert "RankLost" in rank_log(config, 0).read_text()


def test_a_signal_to_one_rank_ends_both_after_the_same_step(model_folder: Models, tmp_path: Path) -> None:
    with TeacherProcess(model_folder("bert")) as teacher:
        config = ranked(tmp_path, "told", teacher, 10_000)
        with rank_processes(config) as ranks:
            wait_for_step(config, ranks[0], 2)
            ranks[1].terminate()
            for each in ranks:
                each.join(60)
                assert each.exitcode == 1
    assert len(list((config.output / "checkpoints").glob("step-*"))) >= 1
    assert "RankLost" not in rank_log(config, 0).read_text()


def test_a_server_that_ends_does_not_wait_for_a_rank_that_never_comes(model_folder: Models) -> None:
    settings = {"rank_wait_s": 300.0, "handoff_s": 0.2, "drain_s": 5.0}
    with TeacherProcess(model_folder("bert"), settings=settings, is_command=True) as teacher:
        teacher.wait_until_it_serves()
        caller, ended_well = Caller(teacher.address, "waits", world_size=2), False
        with suppress(TeachingError), caller, ThreadPoolExecutor(1) as pool:  # at the end nobody is there to leave
            step = pool.submit(attempt, lambda: caller.step(1, rank=0, rows=1))
            time.sleep(0.3)  # it waits, or it comes too late: refused either way
            began = time.monotonic()
            teacher.terminate()
            assert teacher.exit_code() == 0
            assert time.monotonic() - began < 20
            assert isinstance(step.result(20), ServiceError)
            ended_well = True
        assert ended_well
