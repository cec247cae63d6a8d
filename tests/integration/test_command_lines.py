"""The examples of every help run as they stand, in a folder of their own, against a real server; JSON and exit codes."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from command_config.exits import EXIT_MEANINGS, ExitCode
from student_client.fleet import child
from teacher_server.app import TeacherApp
from teacher_server.config import ServerConfig
from teacher_server.security.tokens import add_token
from teaching_protocol.diagnosis.findings import Exit
from tests.command_lines import COMMANDS, PROGRAMS, shown_examples
from tests.integration.processes import ROOT
from tests.unit.student_client.student_data import texts

NOT_RUN = {
    "teacher-server serve": "serves until it is ended: its own tests, and the exit codes below",
    "student-client select": "data that are downloaded, minutes",
    "student-client compare": "minutes: tests/integration/test_compare.py",
    "student-client demo": "minutes: tests/integration/test_demo.py",
    "student-client train --data newsgroups": "data that are downloaded",
    "student-client fleet fleet.yaml --on ray": "a Ray cluster: tests/ray/test_students.py",
    "student-client search": "a Ray cluster: tests/ray/test_students.py",
    "teacher-server fleet": "a Ray cluster: tests/ray/test_teachers.py",
    "teacher-server replace": "a Ray cluster: tests/ray/test_teachers.py",
    "student-client fleet fleet.yaml --at-once": "processes: tests/integration/test_fleet.py",
    "teacher-server finetune --model minilm --data uci_sentiment": "data that are downloaded",
}
"""Beginnings of examples that are not run here; what they hold is parsed by tests/unit/command_config/test_line.py."""

ORDER = ("init", "check-config", "token", "finetune", "train", "evaluate")
"""Commands whose results others take come first."""

MORE = {
    "student-client init run.yaml": "--overwrite",
    "teacher-server finetune": "--epochs 1 --lr 0.01 --labelled 60 --set data.validation=20",
    "student-client doctor": "--limit-s 20",
}
"""What is added to an example, so that it takes seconds."""

SMALL = {
    "STUDENT_CLIENT_TRAINING__MAX_STEPS": "2",
    "STUDENT_CLIENT_TRAINING__BATCH_SIZE": "8",
    "STUDENT_CLIENT_TRAINING__LOG_EVERY": "1",
    "STUDENT_CLIENT_TRAINING__TENSORBOARD": "false",
    "STUDENT_CLIENT_STUDENT__SIZE": "tiny",
    "STUDENT_CLIENT_DATA__LABELLED": "60",
    "STUDENT_CLIENT_DATA__UNLABELLED": "20",
    "STUDENT_CLIENT_DATA__VALIDATION": "20",
    "STUDENT_CLIENT_DATA__TEST": "20",
    "STUDENT_CLIENT_METHOD__MESSAGE_WIDTH": "16",
}
DOCTORS = {Exit.WELL, Exit.FAILED, Exit.WARNED}  # how busy and how large this machine is decides


@pytest.fixture(scope="module")
def place(model_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything the examples name: a model called minilm, mails, a teacher's file and a fleet's."""
    folder = tmp_path_factory.mktemp("examples")
    shutil.copytree(model_folder("bert"), folder / "minilm")
    mails = [f"{text} number {row}" for row, text in enumerate(texts(160, seed=1))]
    rows = "".join(f"{row},{mail},{'good' if 'good' in mail else 'bad'}\n" for row, mail in enumerate(mails))
    (folder / "mails.csv").write_text("id,text,folder\n" + rows)
    (folder / "teacher.yaml").write_text("model: minilm\nport: 0\nmetrics_port: -1\n")
    (folder / "broken.yaml").write_text("name: x\nstudents: [{name: a, settings: {training.lrr: 3}}]\n")
    add_token(folder / "some.json", "alice")
    shutil.copy(ROOT / "examples" / "fleet.yaml", folder)
    return folder


@pytest.fixture(scope="module")
def address(place: Path) -> Iterator[str]:
    config = ServerConfig(model=str(place / "minilm"), device="cpu", entry=1, exit=3, port=0, metrics_port=-1)
    with TeacherApp(config) as server:
        yield f"127.0.0.1:{server.port}"


def examples() -> list[list[str]]:
    """All that are run, in an order that gives each what it needs."""
    shown = [words for each in COMMANDS for words in shown_examples(each)]
    run = [words for words in shown if not any(shlex.join(words).startswith(start) for start in NOT_RUN)]
    return sorted(run, key=lambda words: ORDER.index(words[1]) if words[1] in ORDER else len(ORDER))


def test_what_is_not_run_is_an_example() -> None:
    lines = [shlex.join(words) for each in COMMANDS for words in shown_examples(each)]
    assert all(any(line.startswith(start) for line in lines) for start in NOT_RUN)


def test_the_examples_run(place: Path, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    for name, value in SMALL.items():
        monkeypatch.setenv(name, value)
    before = signal.getsignal(signal.SIGTERM)
    for words in examples():
        line = shlex.join(words)
        more = next((shlex.split(more) for start, more in MORE.items() if line.startswith(start)), [])
        given = [address if word == "127.0.0.1:50051" else word for word in words[1:]] + more
        answers = f"mails.csv\n\n\n\n{address}\n" + "\n" * 20 if words[1] == "init" and "--yes" not in words else None
        done = CliRunner().invoke(PROGRAMS[words[0]], given, input=answers)
        expected = DOCTORS if words[1] == "doctor" else {0}
        assert done.exit_code in expected, (line, done.output, done.exception)
        if "--json" in words:
            json.loads(done.stdout)
    signal.signal(signal.SIGTERM, before)


def test_more_commands_speak_json(place: Path, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)

    def ask(line: str) -> dict[str, object]:
        program, *words = shlex.split(line)
        done = CliRunner().invoke(PROGRAMS[program], words)
        assert done.exit_code == 0, (line, done.output, done.exception)
        return dict(json.loads(done.stdout))

    card = ask(f"teacher-server describe {address} --json")
    assert (card["family"], card["widths"], card["entry"], card["exit"]) == ("bert", [32] * 5, 1, 3)
    ping = ask(f"student-client ping {address} --json")
    assert float(str(ping.pop("round_trip_ms"))) > 0
    assert ping.pop("pings") == 10
    assert ping == card
    fleet = ask("student-client fleet fleet.yaml --dry-run --json")
    assert [each["does"] for each in fleet["students"]] == ["begins"] * 4  # type: ignore[index, attr-defined]


def _process(*words: str, place: Path) -> subprocess.Popen[str]:
    module, *others = words
    environment = {**os.environ, **SMALL, "PYTHONPATH": str(ROOT), "STUDENT_CLIENT_TRAINING__MAX_STEPS": "100000"}
    command = [sys.executable, "-m", module, *others]
    return subprocess.Popen(
        command, cwd=place, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def test_exit_codes_of_processes(place: Path, address: str) -> None:
    """Signals to real processes, and a server that is drained; all started at once."""
    run = ("train", "--data", "mails.csv", "--label-column", "folder", "--teacher", address, "--json", "--output")
    ends = {
        ExitCode.INTERRUPTED: (signal.SIGINT, _process("student_client", *run, "a", place=place)),
        ExitCode.TERMINATED: (signal.SIGTERM, _process("student_client", *run, "b", place=place)),
    }
    serve = ("serve", "--config", "teacher.yaml", "--device", "cpu", "--json")
    server = _process("teacher_server", *serve, place=place)
    for code, (number, process) in ends.items():
        assert process.stderr is not None
        for line in process.stderr:
            if "step 1/" in line:
                break
        process.send_signal(number)
        out, said = process.communicate(timeout=60)
        assert process.returncode == code, said
        ended = json.loads(out)
        assert ended["finished"] is False
        assert re.match(r"student-client train --resume --output [ab]$", ended["go_on_with"])
    assert server.stdout is not None
    places = json.loads(server.stdout.readline())
    assert places["serving"].startswith("127.0.0.1:")
    server.send_signal(signal.SIGTERM)
    server.communicate(timeout=60)
    assert server.returncode == ExitCode.WELL


@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        ("student-client --help", ExitCode.WELL, "Usage"),
        ("student-client trian", ExitCode.USAGE, "Did you mean 'train'?"),
        ("student-client train --metod talking", ExitCode.USAGE, "--method"),
        ("student-client evaluate", ExitCode.USAGE, "Missing argument"),
        ("student-client train --seed many", ExitCode.USAGE, "valid integer"),
        ("student-client train --method talkng", ExitCode.FAILED, "did you mean talking?"),
        ("student-client train --data newsgrups", ExitCode.FAILED, "did you mean newsgroups?"),
        ("student-client train --set training.schedule=cosin", ExitCode.FAILED, "did you mean cosine?"),
        ("student-client train --set training.lrr=1", ExitCode.FAILED, "did you mean training.lr?"),
        ("student-client evaluate x --split tset", ExitCode.FAILED, "did you mean test?"),
        ("student-client compare --suite smok", ExitCode.FAILED, "did you mean smoke?"),
        ("student-client fleet fleet.yaml --print slrum", ExitCode.FAILED, "did you mean slurm?"),
        ("student-client fleet fleet.yaml --on rya", ExitCode.FAILED, "did you mean ray?"),
        (
            "student-client search --suite txet --task spam --variant talking --space teacher.yaml",
            ExitCode.FAILED,
            "did you mean text?",
        ),
        ("student-client export models/mails a.onx", ExitCode.FAILED, ".onnx"),
        ("teacher-server fleet --model m --fleet-set up_queue=1", ExitCode.FAILED, "did you mean up_queue_s?"),
        ("teacher-server fleet --model m --set permts=1", ExitCode.FAILED, "did you mean permits?"),
        ("student-client ping 127.0.0.1:1", ExitCode.FAILED, "no teacher answers at 127.0.0.1:1"),
        ("student-client ping nonsense", ExitCode.FAILED, "expected HOST:PORT"),
        ("student-client ping 127.0.0.1:99999", ExitCode.FAILED, "a port of 1 to 65535"),
        ("student-client ping http://127.0.0.1:50051", ExitCode.FAILED, "expected HOST:PORT"),
        ("student-client ping 127.0.0.1:1 --deadline-s nan", ExitCode.USAGE, "--deadline-s"),
        ("student-client check-config --teacher nonsense", ExitCode.FAILED, "teacher.address: received 'nonsense'"),
        ("student-client train --set training.lr=.inf", ExitCode.FAILED, "received inf, expected a finite number"),
        ("student-client train --data gone.csv", ExitCode.FAILED, "there is no file or folder gone.csv"),
        ("student-client train --resume --output gone", ExitCode.FAILED, "no run in gone"),
        ("student-client train --resume", ExitCode.FAILED, "no run in runs/latest"),
        ("student-client evaluate gone", ExitCode.FAILED, "no run in gone"),
        ("student-client fleet broken.yaml --dry-run --json", ExitCode.FAILED, "did you mean training.lr?"),
        ("student-client fleet broken.yaml --dry-run --json --on ray", ExitCode.FAILED, "did you mean training.lr?"),
        ("teacher-server describe ''", ExitCode.FAILED, "expected HOST:PORT"),
        ("teacher-server describe 127.0.0.1:1 --cert a.pem --key a.pem", ExitCode.FAILED, "need --ca"),
        ("teacher-server describe 127.0.0.1:1 --ca teacher.yaml", ExitCode.FAILED, "teacher.yaml: expected PEM files"),
        ("teacher-server check-config --model m --set threads=1000000", ExitCode.FAILED, "less than or equal to 1024"),
        ("teacher-server check-config --model m --set lease_s=.inf", ExitCode.FAILED, "expected a finite number"),
        ("teacher-server token add a --tokens some.json --output /gone/a", ExitCode.FAILED, "/gone/a: No such file"),
        ("teacher-server token revoke alcie --tokens some.json", ExitCode.WELL, "did you mean alice?"),
        ("student-client doctor 127.0.0.1:1", ExitCode.USAGE, "connection"),
        ("teacher-server srve", ExitCode.USAGE, "Did you mean 'serve'?"),
        ("teacher-server token ad", ExitCode.USAGE, "Did you mean 'add'?"),
        ("teacher-server check-config --model m --set permts=1", ExitCode.FAILED, "did you mean permits?"),
        ("teacher-server serve --model minlm", ExitCode.FAILED, "did you mean minilm?"),
        ("teacher-server serve --model minilm --dtype float61", ExitCode.FAILED, "did you mean float16?"),
    ],
)
def test_exit_codes_and_hints(
    line: str, code: int, said: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In this process, by the commands' own `main`."""
    from student_client.cli import main as student
    from teacher_server.cli import main as teacher

    monkeypatch.chdir(place)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "argv", shlex.split(line))
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended:
        (student if line.startswith("student") else teacher)()
    signal.signal(signal.SIGTERM, before)
    out, errors = capsys.readouterr()
    assert int(ended.value.code or 0) == code, errors
    assert said in out + errors
    if code == ExitCode.FAILED and "--dry-run" not in line:
        assert (out, errors.count("\n")) == ("", 1)


def test_the_page_has_every_exit_code() -> None:
    rows = re.findall(r"^\| (\d+) \| (.+) \|$", (ROOT / "docs" / "commands.md").read_text(), re.MULTILINE)
    assert {int(code): said for code, said in rows} == {int(code): said for code, said in EXIT_MEANINGS.items()}
    assert set(EXIT_MEANINGS) == set(ExitCode)
    assert {int(code) for code in Exit} <= {int(code) for code in ExitCode}
    assert {child.AGAIN, child.NEVER} == {ExitCode.AGAIN, ExitCode.NEVER}
