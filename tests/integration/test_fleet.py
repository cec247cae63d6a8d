"""A fleet as the command runs it, against a real teacher: crashes, signals, kill -9, and what is left on disk."""

from __future__ import annotations

import hashlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from student_client.cli import main
from student_client.fleet.plan import plan
from student_client.fleet.restarts import Restarts
from student_client.fleet.seats import seats
from student_client.fleet.settings import FleetConfig
from student_client.fleet.supervisor import Supervisor
from student_client.training.checkpoints import checkpoint_folders
from student_client.training.runs import train
from tests.integration.gate import poll
from tests.integration.processes import ROOT, Address, ServerProcess
from tests.unit.student_client.run_setup import quiet, run_config

LIMIT_S = 120.0


@pytest.fixture(scope="module")
def teacher(model_folder: Callable[[str], Path]) -> Iterator[Address]:
    settings = {"model": str(model_folder("bert")), "deterministic": True, "entry": 1, "exit": 3, "metrics_port": -1}
    process = ServerProcess({"teacher": settings})
    yield process.addresses["teacher"]
    process.close()


def common(folder: Path, teacher: Address, **overrides: Any) -> dict[str, Any]:
    """A talking run of 100 steps with dropout, every one of them written down."""
    fields = {
        "training__max_steps": 100,
        "training__log_every": 1,
        "training__evaluate_every": 50,
        "training__deterministic": True,
        "teacher__address": teacher.name,
        "teacher__patience_s": 20,
    }
    values = run_config(folder, "alone", "talking", **fields | overrides).model_dump(mode="json")
    del values["output"]
    return values


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:  # it ended since it was listed
        return False


def write(folder: Path, **fields: Any) -> Path:
    path = folder / "fleet.yaml"
    settings = {"name": "test", "output": str(folder / "fleet"), "first_pause_s": 0.1, "longest_pause_s": 0.5}
    path.write_text(yaml.safe_dump(settings | fields))
    return path


class Fleet:
    """`student-client fleet FILE` in a process of its own."""

    def __init__(self, file: Path, *flags: str, stdout: int = subprocess.PIPE) -> None:
        self.root = file.parent / "fleet"
        command = [sys.executable, "-m", "student_client", "fleet", str(file), *flags]
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=stdout, stderr=subprocess.STDOUT, text=True)
        self.most = 0

    def student(self, name: str) -> dict[str, Any]:
        """What fleet.json says of a student."""
        path = self.root / "fleet.json"
        found = json.loads(path.read_text())["students"] if path.exists() else []
        return next((each for each in found if each["name"] == name), {})

    def children(self) -> list[psutil.Process]:
        return [each for each in psutil.Process(self.process.pid).children() if _lives(each)]

    def step(self, name: str) -> int:
        """The last whole step that a student has written down."""
        path = self.root / name / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return max((json.loads(line)["step"] for line in lines if line.endswith("}")), default=0)

    def until(self, condition: Callable[[], Any], what: str) -> Any:
        def look() -> Any:
            assert self.process.poll() is None, self.process.communicate()[0]
            self.most = max(self.most, len(self.children()))
            return condition()

        return poll(look, what, LIMIT_S)

    def ended(self) -> tuple[int, str]:
        """The exit code and everything it said."""
        out, _ = self.process.communicate(timeout=LIMIT_S)
        return self.process.returncode, out

    def __enter__(self) -> Fleet:
        return self

    def __exit__(self, *_: object) -> None:
        for child in self.children() if self.process.poll() is None else []:
            child.kill()
        self.process.kill()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()


def in_process(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """`student-client ARGUMENTS` in this process; gives the exit code."""
    monkeypatch.setattr(sys, "argv", ["student-client", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def left_by(folder: Path) -> dict[str, Any]:
    """What a run ends with: student, codec, optimizers, random state and the teacher's session to the bit, and its losses."""
    newest = checkpoint_folders(folder / "checkpoints")[-1]
    files = [*newest.rglob("*.safetensors"), *newest.glob("session*"), *(folder / "student").rglob("*.safetensors")]
    assert len({file.name for file in files}) > 3
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {
        "weights": {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files},
        "losses": [(line["step"], line["loss"]) for line in lines],
        "test": json.loads((folder / "result.json").read_text())["test_loss"],
    }


@pytest.fixture(scope="module")
def alone(teacher: Address, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], dict[str, Any]]:
    """What an unbroken run of a seed leaves, trained in this process."""
    made: dict[int, dict[str, Any]] = {}

    def run(seed: int) -> dict[str, Any]:
        if seed not in made:
            folder = tmp_path_factory.mktemp("alone")
            seeds = {"training__seed": seed, "student__seed": seed, "method__seed": seed, "training__threads": 1}
            config = run_config(folder, "alone", "talking", **seeds).model_copy(update={"output": folder / "alone"})
            values = common(folder, teacher, **seeds) | {"output": folder / "alone"}
            assert train(type(config).model_validate(values), progress=quiet()) is not None
            made[seed] = left_by(folder / "alone")
        return made[seed]

    return run


def test_a_killed_student_is_restarted_and_a_bad_one_stops_nobody(
    tmp_path: Path, teacher: Address, alone: Callable[[int], dict[str, Any]]
) -> None:
    """Four students, two at once, of which one is killed with -9, one can have no settings like that, one no teacher."""
    students: list[dict[str, Any]] = [
        {"name": "bad", "settings": {"training.lr": -1}},
        {"name": "lonely", "settings": {"teacher": None}},
    ]
    grid = {"seeds": [0, 1], "settings": {"ann": {}}}
    file = write(tmp_path, at_once=2, common=common(tmp_path, teacher), students=students, grid=grid, threads=1)
    killed = "ann-seed0"
    with Fleet(file) as fleet:
        pid = fleet.until(lambda: fleet.student(killed).get("pid"), "it is started")
        expected = seats(os.sched_getaffinity(0), 2, threads=1)
        for child in fleet.children():
            places = [seat for seat in expected if set(seat.cores) == set(child.cpu_affinity())]
            assert places, "every student keeps to the cores of a seat"
            assert child.environ()["OMP_NUM_THREADS"] == "1"
            assert os.getpgid(child.pid) != os.getpgid(fleet.process.pid), "Ctrl-C of a terminal is the fleet's alone"
        fleet.until(lambda: fleet.step(killed) > 20, "a step after a checkpoint")
        os.kill(pid, signal.SIGKILL)
        fleet.until(lambda: fleet.student(killed)["attempts"] == 2, "it is started again")
        code, out = fleet.ended()
    assert code == 1
    assert fleet.most <= 2, "never more at once than asked"
    records = {each["name"]: each for each in json.loads((fleet.root / "fleet.json").read_text())["students"]}
    assert {name: each["state"] for name, each in records.items()} == {
        "bad": "failed",
        "lonely": "failed",
        killed: "finished",
        "ann-seed1": "finished",
    }
    assert (records["bad"]["attempts"], records["lonely"]["attempts"]) == (0, 1), "it would fail again"
    assert "training.lr: received -1, expected" in records["bad"]["error"]
    assert records["lonely"]["error"].startswith("ConfigError: teacher: received none, expected one")
    assert records[killed]["crashes"] == 1
    assert json.loads((fleet.root / killed / "student.json").read_text())["training"]["threads"] == 1
    for seed in (0, 1):
        assert left_by(fleet.root / f"ann-seed{seed}") == alone(seed), "as if nothing had happened"
    lines = out.splitlines()
    changes = [line for line in lines if line.startswith(f"{killed}: ")]
    assert [re.split(r"[:,]", line)[1].strip() for line in changes] == ["running", "pausing", "running", "finished"]
    assert "it was ended by signal 9; starts again in" in changes[1]
    before_the_summary = out.partition("┏")[0].splitlines()
    assert len(before_the_summary) <= 12, "a line for each change, and no flood"
    log = (fleet.root / killed / "student.log").read_text()
    assert re.search(r"--- .* begins: .*\n", log)
    assert re.search(r"--- .* goes on: ", log)


def test_signals_end_it_cleanly_and_the_same_command_goes_on(
    tmp_path: Path,
    teacher: Address,
    alone: Callable[[int], dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The fleet is killed with -9, then interrupted, then ends; in the end nothing of that can be seen in the students."""
    grid = {"seeds": [0, 1]}
    file = write(tmp_path, at_once=2, common=common(tmp_path, teacher), grid=grid, threads=1, pin=False)
    names = ("seed0", "seed1")
    with Fleet(file) as fleet:
        fleet.until(lambda: all(fleet.step(name) > 8 for name in names), "both train")
        students = fleet.children()
        assert len(students) == 2
        fleet.process.kill()
        _, alive = psutil.wait_procs(students, timeout=30)
        assert not alive, "no student outlives its fleet"
    saved = {name: len(checkpoint_folders(fleet.root / name / "checkpoints")) for name in names}
    assert all(saved.values()), "and each left a checkpoint"
    screen = Terminal()
    with Fleet(file, stdout=screen.slave) as fleet:
        fleet.until(lambda: all(fleet.student(name).get("pid") for name in names), "both are started")
        students = fleet.children()
        steps = {name: fleet.step(name) for name in names}
        fleet.until(lambda: any(fleet.step(name) > steps[name] for name in names), "they go on")
        fleet.process.send_signal(signal.SIGINT)
        assert fleet.process.wait(LIMIT_S) == 130
        assert not psutil.wait_procs(students, timeout=5)[1]
        states = {fleet.student(name)["state"] for name in names}
        assert "interrupted" in states
        assert states <= {"interrupted", "finished"}
    shown = screen.text()
    assert "the same command goes on with what is left" in shown
    assert "validation" in shown, "the table"
    assert "2 running" in shown
    assert all(name in shown for name in names)
    assert "running, start" not in shown, "where there is a table, there are no lines"
    assert in_process(monkeypatch, "fleet", file) == 0
    assert "2 finished" in capsys.readouterr().out
    for name in names:
        assert left_by(fleet.root / name) == alone(int(name[-1]))
    assert in_process(monkeypatch, "fleet", file) == 0, "nothing is left to do"
    out = capsys.readouterr().out
    assert ("seed0: finished, test accuracy" in out, "running" in out) == (True, False)


class Terminal:
    """A terminal of 120 x 40, and everything that was written to it."""

    def __init__(self) -> None:
        self.master, self.slave = pty.openpty()
        subprocess.run(["stty", "cols", "120", "rows", "40"], stdin=self.slave, check=True)
        self._seen: list[bytes] = []
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def text(self) -> str:
        """All of it, without colours and cursor movements; closes the terminal."""
        os.close(self.slave)
        self._thread.join(20)
        os.close(self.master)
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", b"".join(self._seen).decode("utf-8", "replace"))

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self.master, 4096)
            except OSError:  # nobody writes any more
                return
            self._seen.append(data)


def test_a_dry_run_starts_nothing(
    tmp_path: Path, teacher: Address, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    students = [{"name": "ann"}, {"name": "bad", "settings": {"training.lr": -1}}]
    file = write(tmp_path, common=common(tmp_path, teacher), students=students)
    assert in_process(monkeypatch, "fleet", file, "--dry-run") == 1, "one of them would fail"
    out = capsys.readouterr().out
    assert "ann" in out
    assert "begins" in out
    assert "received -1" in re.sub(r"\s*│\s*", " ", out).replace("\n", "")
    assert not (tmp_path / "fleet").exists()


def test_a_second_signal_kills_who_does_not_end(tmp_path: Path, teacher: Address) -> None:
    """The student is stopped by the system, so that it cannot listen; before it could, it waited for its seat."""
    fleet = FleetConfig.model_validate(
        {
            "name": "stuck",
            "output": tmp_path / "fleet",
            "common": common(tmp_path, teacher) | {"method": {"names": ["task_only"]}},
            "grid": {"seeds": [0, 1]},
        }
    )
    said: list[str] = []
    supervisor = Supervisor(
        plan(fleet, {}), seats({min(os.sched_getaffinity(0))}, 1), Restarts(0, 1.0, 1.0), grace_s=600.0, say=said.append
    )
    thread = threading.Thread(target=supervisor.run)
    thread.start()
    try:
        stuck, waits = supervisor.records
        poll((tmp_path / "fleet" / "seed0" / "metrics.jsonl").exists, "it trains", LIMIT_S)
        assert stuck.pid is not None
        os.kill(stuck.pid, signal.SIGSTOP)
        supervisor.ask_to_end(signal.SIGTERM)
        poll(lambda: waits.state == "interrupted", "the one that waited is let go")
        assert stuck.state == "running"
        supervisor.ask_to_end(signal.SIGTERM)
        thread.join(20)
        assert not thread.is_alive()
        assert (stuck.state, stuck.pid) == ("interrupted", None)
        assert len(said) == 1
    finally:
        supervisor.ask_to_end(signal.SIGTERM)
        supervisor.ask_to_end(signal.SIGTERM)
        thread.join(20)
