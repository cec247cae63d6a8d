from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from student_client.cli import main
from teacher_server.app import TeacherApp
from teacher_server.config import ServerConfig
from tests.unit.student_client.run_setup import write_csv

Command = Callable[..., tuple[int, str, str]]
SMALL = (
    "training.batch_size=8",
    "training.evaluate_every=4",
    "training.tensorboard=false",
    "training.device=cpu",
    "student.size=tiny",
    "data.validation=40",
    "data.test=40",
    "method.message_width=16",
    "method.message_tokens=2",
)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs `student-client ARGUMENTS`: exit code, standard output, standard error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["student-client", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        code = ended.value.code
        return int(code or 0), *capsys.readouterr()

    return run


@pytest.fixture
def server(model_folder: Callable[[str], Path]) -> TeacherApp:
    config = ServerConfig(model=str(model_folder("bert")), device="cpu", entry=1, exit=3, port=0, metrics_port=-1)
    return TeacherApp(config)


def training(folder: Path, method: str = "task_only") -> list[str]:
    path = folder / "mood.csv"
    flags = ["train", "--data", str(path if path.exists() else write_csv(folder)), "--method", method]
    flags += [
        "--labelled",
        "60",
        "--unlabelled",
        "40",
        "--max-steps",
        "8",
        "--seed",
        "3",
        "--threads",
        "1",
        "--output",
        str(folder / "run"),
    ]
    return flags + [part for setting in SMALL for part in ("--set", setting)]


def test_trains_evaluates_and_resumes(tmp_path: Path, command: Command) -> None:
    code, out, _ = command(*training(tmp_path))
    assert code == 0
    assert "step 4/8" in out
    assert "task_only: test accuracy" in out
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["data"]["name"], config["training"]["seed"], config["student"]["seed"]) == ("file", 3, 3)
    assert config["training"]["threads"] == 1
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    code, out, _ = command("evaluate", tmp_path / "run")
    assert code == 0
    assert f"test: accuracy {result['test']:.4f}" in out
    code, out, _ = command("train", "--resume", "--output", tmp_path / "run", "--quiet")
    assert code == 0
    assert f"test accuracy {result['test']:.4f}" in out


def test_a_config_file_with_flags_over_it(tmp_path: Path, command: Command) -> None:
    assert command(*training(tmp_path))[0] == 0
    again = ("train", "--config", tmp_path / "run" / "config.json", "--output", tmp_path / "other", "--max-steps", 2)
    assert command(*again)[0] == 0
    assert json.loads((tmp_path / "other" / "result.json").read_text())["steps"] == 2


def test_pings_a_teacher_and_trains_against_it(tmp_path: Path, command: Command, server: TeacherApp) -> None:
    with server:
        address = f"127.0.0.1:{server.port}"
        code, out, _ = command("ping", address)
        assert code == 0
        assert "family" in out
        assert "ms (median of 10)" in out
        code, out, errors = command(*training(tmp_path, "talking"), "--teacher", address)
        assert (code, errors) == (0, "")
    assert json.loads((tmp_path / "run" / "result.json").read_text())["teacher_s"] > 0
    assert command("evaluate", tmp_path / "run")[0] == 0  # the server is gone


def test_begins_at_the_first_of_several_addresses_where_somebody_serves(
    tmp_path: Path, command: Command, server: TeacherApp
) -> None:
    with server:
        addresses = f"127.0.0.1:1,127.0.0.1:{server.port}"
        assert command(*training(tmp_path, "talking"), "--teacher", addresses)[0] == 0
    code, _, errors = command(*training(tmp_path, "talking"), "--overwrite", "--teacher", "127.0.0.1:1,127.0.0.1:2")
    assert code == 1
    assert "no teacher answers at 127.0.0.1:2" in errors
    assert "before that: no teacher answers at 127.0.0.1:1" in errors


class _Closing(io.StringIO):
    """A standard output that ends the server in the middle of step 4's report."""

    def __init__(self, server: TeacherApp) -> None:
        super().__init__()
        self.server = server

    def write(self, text: str) -> int:
        if "step 4/" in text:
            self.server.close()
        return super().write(text)


def test_a_teacher_that_goes_away_is_one_line_and_the_run_can_be_resumed(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: Command,
    server: TeacherApp,
) -> None:
    server.start()
    capsys.readouterr()  # the server's own progress
    flags = ("--set", "training.checkpoint_every=3", "--set", "teacher.deadline_s=1", "--set", "teacher.patience_s=0")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", _Closing(server))
        code, _, errors = command(*training(tmp_path, "talking"), "--teacher", f"127.0.0.1:{server.port}", *flags)
    assert code == 1
    assert errors.count("\n") == 1
    assert "go on with: student-client train --resume" in errors
    with TeacherApp(server.config) as other:
        capsys.readouterr()
        address = ("--teacher", f"127.0.0.1:{other.port}", "--set", "teacher.deadline_s=60")
        code, out, errors = command("train", "--resume", "--output", tmp_path / "run", *address)
    assert (code, errors) == (0, "")
    assert "step 8/8" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["ping", "127.0.0.1:1"], "no teacher answers at 127.0.0.1:1"),
        (["evaluate", "nowhere"], "no run in nowhere"),
        (["evaluate", "nowhere", "--split", "all"], "--split: received 'all', expected one of train, validation, test"),
        (["train", "--data", "nothing.csv"], "--data: there is no file or folder nothing.csv"),
        (["train", "--set", "training.lr"], "--set: received 'training.lr', expected field=value"),
        (["train", "--set", "training.lr=-1"], "training.lr: received -1, expected"),
        (["train", "--set", "training.lr=[", "--method", "task_only"], "expected a YAML value"),
        (["train", "--method", "shouting"], "method.names"),
        (["train", "--config", "nothing.yaml"], "config file nothing.yaml cannot be read"),
        (["train", "--resume", "--output", "nothing"], "no run in nothing"),
    ],
)
def test_an_error_is_one_line_and_exit_code_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command, arguments: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    if "--method" in arguments and "shouting" in arguments:
        arguments = [*training(tmp_path), *arguments[1:]]
    code, out, errors = command(*arguments)
    assert code == 1
    assert out == ""
    assert errors.count("\n") == 1
    assert errors.startswith("student-client: ")
    assert said in errors


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["evaluate", "--help"], ["ping", "--help"]])
def test_help(command: Command, arguments: list[str]) -> None:
    code, out, _ = command(*arguments)
    assert code == 0
    assert "Usage" in out
