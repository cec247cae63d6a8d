"""The demo as a user runs it, on a tiny teacher and a small file; what it writes, and that nobody is left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from student_client.demo import Demo, run_demo
from student_client.processes import shared_threads
from teaching_protocol.errors import ConfigError
from tests.integration.gate import poll
from tests.unit.student_client.run_setup import write_csv


def demo(folder: Path, model: Path, steps: int) -> subprocess.Popen[str]:
    flags = {
        "--output": folder / "demo",
        "--data": write_csv(folder),
        "--model": model,
        "--labelled": 30,
        "--unlabelled": 60,
        "--validation": 30,
        "--steps": steps,
    }
    # a test runner in the background of a shell hands SIGINT down as ignored
    command = [
        "env",
        "--default-signal=INT",
        sys.executable,
        "-m",
        "student_client",
        "demo",
        *(str(part) for pair in flags.items() for part in pair),
    ]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def test_it_writes_a_report_a_plot_and_the_metrics(tmp_path: Path, model_folder: Callable[[str], Path]) -> None:
    process = demo(tmp_path, model_folder("bert"), steps=6)
    said, _ = process.communicate(timeout=200)
    assert process.returncode == 0, said
    report = json.loads((tmp_path / "demo" / "report.json").read_text())
    assert [run["name"] for run in report["runs"]] == ["task_only", "one_way", "talking"]
    for run in report["runs"]:
        assert run["steps"] == 6
        assert 0 <= run["test"] <= 1
        assert (run["teacher_s"] > 0) == (run["name"] != "task_only")
        assert run["name"] in said
        assert f"{run['test']:.3f}" in said
    configured = [json.loads(path.read_text()) for path in (tmp_path / "demo").glob("*.json")]
    threads = [each.get("threads", each.get("training", {}).get("threads")) for each in configured]
    assert [count for count in threads if count] == [shared_threads(4)] * 4, "the server and the three students"
    assert list(report["sizes"]) == ["task_only", "one_way", "talking", "teacher"]
    assert min(size["rows_per_s"] for size in report["sizes"].values()) > 0
    assert "size and speed" in said
    assert (tmp_path / "demo" / "curves.png").read_bytes().startswith(b"\x89PNG")
    metrics = (tmp_path / "demo" / "metrics.prom").read_text()
    assert "teacher_session_steps_total 12.0" in metrics, "two students of six steps"
    for method in ("task_only", "one_way", "talking"):
        assert (tmp_path / "demo" / method / "student" / "config.json").exists()


@pytest.mark.parametrize("how", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_ended_in_the_middle_it_leaves_no_process(
    tmp_path: Path, model_folder: Callable[[str], Path], how: signal.Signals
) -> None:
    process = demo(tmp_path, model_folder("bert"), steps=100_000)
    log = tmp_path / "demo" / "talking" / "metrics.jsonl"
    poll(log.exists, "the students train", limit_s=120)
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= 4
    os.kill(process.pid, how)
    process.communicate(timeout=60)
    assert process.returncode != 0
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="no demo has written"):
        run_demo(Demo(tmp_path), Console(quiet=True))
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
