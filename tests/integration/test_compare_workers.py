"""Worker processes as a comparison uses them: what a job leaves, and what is left when a process dies."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from student_client.compare.workers import Outcome, Workers
from student_client.config import RunConfig
from student_client.training.runs import train
from tests.integration.gate import poll
from tests.unit.student_client.run_setup import quiet, run_config


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workers]:
    with Workers(2, tmp_path_factory.mktemp("workers")) as found:
        yield found


def training(config: RunConfig, **fields: Any) -> dict[str, Any]:
    job = {"kind": "train", "config": config.model_dump(mode="json"), "keep_student": False}
    return job | {"log": str(config.output.with_suffix(".log"))} | fields


def command(folder: Path, script: str) -> dict[str, Any]:
    words = [sys.executable, "-c", script]
    return {"kind": "command", "command": words, "said": str(folder / "said.log"), "log": str(folder / "job.log")}


def finish(workers: Workers) -> dict[Any, Outcome]:
    """Waits for all jobs that run."""
    found: dict[Any, Outcome] = {}
    poll(lambda: bool(found.update(workers.wait(0.2)) or not workers.running), "all jobs end", limit_s=120)
    return found


def test_a_run_is_the_same_alone_and_after_others_in_a_worker(tmp_path: Path, workers: Workers) -> None:
    alone = train(run_config(tmp_path, "alone", training__threads=1), progress=quiet())
    assert alone is not None
    for name in ("first", "second", "third"):  # three jobs on two workers: one of them does two
        poll(lambda: bool(workers.wait(0.2) or len(workers.running) < workers.count), "a worker is free", limit_s=120)
        config = run_config(tmp_path, name, training__threads=1)
        workers.give(name, training(config, keep_student=name == "third"))
    assert all(outcome == Outcome() for outcome in finish(workers).values())
    for name in ("first", "second", "third"):
        result = json.loads((tmp_path / name / "result.json").read_text())
        assert (result["test"], result["test_loss"]) == (alone.test, alone.test_loss)
        assert not (tmp_path / name / "checkpoints").exists(), "a thousand runs would fill the disk"
        assert (tmp_path / name / "student").exists() == (name == "third")
        assert "step 20/20" in (tmp_path / f"{name}.log").read_text()


def test_a_job_that_fails_says_why_and_the_worker_does_the_next_one(tmp_path: Path, workers: Workers) -> None:
    workers.give("no teacher", training(run_config(tmp_path, "talking", method="talking")))
    workers.give(
        "no one there", training(run_config(tmp_path, "lost", method="talking", teacher__address="127.0.0.1:1"))
    )
    found = finish(workers)
    assert found["no teacher"].error is not None
    assert found["no teacher"].error.startswith("ConfigError: teacher: received none, expected one")
    assert not found["no teacher"].again, "asking again changes nothing"
    assert found["no one there"].error is not None
    assert found["no one there"].error.startswith("TeacherUnavailable")
    assert found["no one there"].again
    workers.give(
        "bug", {"kind": "train", "config": {"nonsense": 1}, "keep_student": False, "log": str(tmp_path / "bug.log")}
    )
    (outcome,) = finish(workers).values()
    assert outcome.error is not None
    assert "bug.log" in outcome.error
    assert "Traceback" in (tmp_path / "bug.log").read_text()
    workers.give("good", training(run_config(tmp_path, "good", training__max_steps=2)))
    assert finish(workers) == {"good": Outcome()}


def test_a_worker_that_is_killed_takes_its_own_job_with_it_and_no_other(tmp_path: Path, workers: Workers) -> None:
    workers.give("victim", training(run_config(tmp_path, "victim", training__max_steps=100_000)))
    (pid,) = workers.pids
    workers.give("other", training(run_config(tmp_path, "other", training__max_steps=30)))
    poll((tmp_path / "victim" / "metrics.jsonl").exists, "the victim trains", limit_s=60)
    os.kill(pid, signal.SIGKILL)
    found = finish(workers)
    assert found == {"other": Outcome(), "victim": Outcome("the worker process ended with code -9", again=True)}
    workers.give("again", training(run_config(tmp_path, "victim", training__max_steps=2)))
    assert finish(workers) == {"again": Outcome()}, "in a new process, over what the dead one left"


def test_a_command_that_fails_says_its_last_line(tmp_path: Path, workers: Workers) -> None:
    workers.give("bad", command(tmp_path, "print('first'); raise SystemExit('what went wrong')"))
    (outcome,) = finish(workers).values()
    assert outcome.error is not None
    assert "ended with code 1: what went wrong" in outcome.error


def test_closed_in_the_middle_nothing_of_them_lives_on(tmp_path: Path) -> None:
    with Workers(2, tmp_path / "workers") as workers:
        workers.give("trains", training(run_config(tmp_path, "run", training__max_steps=100_000)))
        started = tmp_path / "started"
        workers.give("command", command(tmp_path, f"import time; open({str(started)!r}, 'w'); time.sleep(600)"))
        poll(lambda: started.exists() and (tmp_path / "run" / "metrics.jsonl").exists(), "both work", limit_s=120)
        processes = [psutil.Process(pid) for pid in workers.pids]
        processes += [child for process in processes for child in process.children(recursive=True)]
        assert len(processes) == 3
    _, alive = psutil.wait_procs(processes, timeout=20)
    assert not alive
    assert not (tmp_path / "run" / "result.json").exists()
