"""The examples run as a user would run them, against a server in another process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from student_client.compare.runner import known_runs
from student_client.compare.suites import read_suite
from tests.integration.processes import Address

ROOT = Path(__file__).parents[2]


def test_own_loop(servers: dict[str, Address]) -> None:
    command = [sys.executable, str(ROOT / "examples" / "own_loop.py"), servers["bert"].name]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    losses = [float(line.split("loss ")[1].split(",")[0]) for line in done.stdout.splitlines()]
    assert len(losses) == 4
    assert losses[-1] < losses[0]


def test_examples_are_short() -> None:
    assert len((ROOT / "examples" / "plain_loop.py").read_text().splitlines()) <= 40
    for path in (ROOT / "examples").glob("*.py"):
        assert len(path.read_text().splitlines()) <= 60, path


def test_suites_can_be_run(tmp_path: Path) -> None:
    """Every variant's settings are checked as `compare` checks them before its first run."""
    suites = [read_suite(path) for path in (ROOT / "examples").glob("*.yaml") if path.name != "fleet.yaml"]
    assert suites
    for suite in suites:
        assert all(board.missing for board in known_runs(suite, (), 3, tuned=False, root=tmp_path))
