"""`student-client compare` as a user runs it: real servers, real worker processes, Ctrl-C and kill -9."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from tests.integration.gate import poll

SUITE = """
name: mine
grid: [{training.lr: 0.01}, {training.lr: 0.001}]
tasks:
  digits:
    data: {name: digits, labelled: 60, unlabelled: 100, validation: 60, test: 100}
    settings: {student.size: tiny, training.max_steps: 60, training.batch_size: 16, training.evaluate_every: 20, training.log_every: 2}
    foundation: {student: {student.size: tiny, training.max_steps: 20}}
variants:
  task_only: {methods: [task_only], role: baseline, teachers: []}
  one_way: {methods: [one_way], role: baseline, settings: {method.message_width: 16}}
  talking: {methods: [talking], settings: {method.message_width: 16}}
  talking_two_rounds: {methods: [talking], role: ablation, settings_of: talking, settings: {method.message_width: 16, method.rounds: 2}}
  too_wide: {methods: [one_way], settings: {method.message_width: 100000}}
contrasts: [[talking, one_way]]
"""
RUNS = 4 * 2 + 5 * 2


@contextmanager
def comparison(suite: str | Path, output: Path, *flags: str) -> Iterator[subprocess.Popen[str]]:
    # a test runner in the background of a shell hands SIGINT down as ignored
    command = ["env", "--default-signal=INT", sys.executable, "-m", "student_client", "compare"]
    command += ["--suite", str(suite), "--seeds", "2", "--workers", "2", "--output", str(output), *flags]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)


def finished(output: Path) -> dict[Path, int]:
    """When every run that has ended has ended."""
    return {path: path.stat().st_mtime_ns for path in (output / "runs").glob("*/*/*/result.json")}


def recorded(output: Path) -> int:
    """How many runs results.json has."""
    path = output / "results.json"
    return len(json.loads(path.read_text())["runs"]) if path.exists() else 0


def one_of(process: subprocess.Popen[str], words: str) -> Callable[[], psutil.Process | None]:
    """Looks for a process under `process` with these words in its command line."""

    def look() -> psutil.Process | None:
        for child in psutil.Process(process.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):  # a worker that ends while it is looked at
                if words in " ".join(child.cmdline()):
                    return child
        return None

    return look


def test_the_smoke_suite_ends_and_all_it_leaves_agrees(tmp_path: Path) -> None:
    output = tmp_path / "smoke"
    with comparison("smoke", output) as process:
        said, _ = process.communicate(timeout=280)
    assert process.returncode == 0, said
    results = json.loads((output / "results.json").read_text())
    runs = results["runs"]
    assert {(run["variant"], run["stage"], run["seed"]) for run in runs} == {
        (variant, "final", seed) for variant in ("task_only", "one_way", "talking") for seed in (0, 1)
    }
    for run in runs:
        own = json.loads((output / "runs/digits" / run["variant"] / f"final-{run['seed']}" / "result.json").read_text())
        for name in ("validation", "test", "steps", "wall_s", "teacher_s", "teacher_rows", "bytes_sent"):
            assert run[name] == own[name]
        assert run["steps"] == 30
        assert (run["teacher_rows"] > 0) == (run["variant"] != "task_only")
    (table,) = results["tables"]
    page = (output / "report.html").read_text()
    for row in table["rows"]:
        tests = [run["test"] for run in runs if run["variant"] == row["variant"]]
        assert row["test"]["mean"] == pytest.approx(sum(tests) / 2)
        shown = f"{row['test']['mean']:.4f} ± {row['test']['deviation']:.4f}"
        assert all(shown in text for text in (said, page, (output / "results.md").read_text()))
    teacher = table["teachers"]["foundation-trained"]["test"]
    assert 0.5 < teacher <= 1, "the teacher knows the digits"
    assert f"foundation-trained {teacher:.4f}" in " ".join(said.split())
    assert list(table["sizes"]) == ["student", "teacher foundation"]
    assert table["sizes"]["student"]["parameters"] == runs[0]["parameters"]
    for size in table["sizes"].values():
        assert min(size["rows_per_s"], size["disk_bytes"]) > 0
        assert all(f"{size['rows_per_s']:.0f}" in text for text in (said, page, (output / "results.md").read_text()))
    assert "digits: size and speed" in said
    assert {path.name for path in (output / "plots").iterdir()} == {"digits-scores.png", "digits-curves.png"}
    assert page.count("<svg") == 2
    assert results["command"] in page
    before = finished(output)
    with comparison("smoke", output) as process:
        again, _ = process.communicate(timeout=120)
    assert "6 runs, 6 ended earlier" in again
    assert finished(output) == before, "nothing is run again"
    assert json.loads((output / "results.json").read_text())["tables"] == results["tables"]


@pytest.mark.slow
def test_interrupted_killed_and_with_a_variant_that_fails_it_comes_to_its_end(tmp_path: Path) -> None:
    suite, output = tmp_path / "mine.yaml", tmp_path / "mine"
    suite.write_text(SUITE)
    with comparison(suite, output) as process:
        poll(lambda: recorded(output) >= 3, "three runs have ended", limit_s=200)
        children = psutil.Process(process.pid).children(recursive=True)
        assert len(children) >= 3, "two workers and a server"
        os.kill(process.pid, signal.SIGINT)
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert re.search(rf"interrupted, \d+ of {RUNS} runs are left; go on with: student-client compare --suite", said)
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive
    assert "interrupted; writes the report" in said
    assert "task_only" in (output / "report.html").read_text(), "the report of the runs that have ended"
    before = finished(output)
    assert recorded(output) >= 3

    with comparison(suite, output) as process:
        for words in ("student_client.compare.worker", "teacher_server serve"):
            poll(lambda: len(finished(output)) > len(before), "it goes on", limit_s=200)
            victim = one_of(process, words)()
            assert victim is not None
            victim.kill()
        said, _ = process.communicate(timeout=250)
    assert process.returncode == 0, said
    assert f"{RUNS} runs, {len(before)} ended earlier" in said
    after = finished(output)
    assert {path: after[path] for path in before} == before, "finished runs are not run again"
    results = json.loads((output / "results.json").read_text())
    assert (len(results["runs"]), results["runs_missing"]) == (RUNS, 0)
    failed = [run for run in results["runs"] if run["error"] is not None]
    assert {(run["variant"], run["stage"]) for run in failed} == {("too_wide", "tune"), ("too_wide", "final")}
    assert len(failed) == 4
    assert "message_width" in failed[0]["error"]
    assert "is tried again: the worker process ended with code -9" in said
    rows = {row["variant"]: row for row in results["tables"][0]["rows"]}
    assert (rows["too_wide"]["failed"], rows["too_wide"]["test"]) == (2, None)
    assert all(row["test"]["n"] == 2 for name, row in rows.items() if name != "too_wide")
    chosen = {run["trial"] for run in results["runs"] if run["variant"] == "talking" and run["stage"] == "final"}
    trials = [run for run in results["runs"] if run["variant"] == "talking" and run["stage"] == "tune"]
    assert chosen == {max(trials, key=lambda run: (run["validation"], -run["trial"]))["trial"]}
    followed = [run for run in results["runs"] if run["variant"] == "talking_two_rounds"]
    assert {run["trial"] for run in followed} == chosen
    assert "too_wide" in (output / "report.html").read_text()


def test_killed_it_leaves_no_server_and_no_worker(tmp_path: Path) -> None:
    suite, output = tmp_path / "mine.yaml", tmp_path / "mine"
    suite.write_text(SUITE)
    with comparison(suite, output) as process:
        poll(one_of(process, "teacher_server serve"), "a server runs", limit_s=120)
        poll(one_of(process, "compare.worker"), "a worker runs", limit_s=20)
        children = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        _, alive = psutil.wait_procs(children, timeout=60)
    assert not alive
