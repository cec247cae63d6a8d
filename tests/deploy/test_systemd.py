"""The unit as systemd reads it, how exposed it finds it, and its command run as it stands."""

from __future__ import annotations

import configparser
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from teacher_server.config import ServerConfig
from tests.deploy.dockerfiles import ROOT
from tests.integration.gate import poll
from tests.parts import part

UNIT = ROOT / "deploy/systemd/teacher.service"
EXPOSURE = 1.5
"""Of 10. `systemd-analyze security` finds 1.4: most of it is that a server needs the network, and torch writes machine code."""


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit with a command that is there: /opt/talking-models/bin is no part of this repository."""
    path = tmp_path / "teacher.service"
    path.write_text(UNIT.read_text().replace("/opt/talking-models/bin/teacher-server", "/bin/true"))
    return path


def analyze(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([part("systemd-analyze"), *words], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("gpu", [False, True])
def test_systemd_finds_no_fault(unit: Path, gpu: bool) -> None:
    if gpu:
        shutil.copytree(UNIT.parent / "teacher.service.d", unit.parent / "teacher.service.d")
    done = analyze("verify", unit)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_a_fault_would_be_found(unit: Path) -> None:
    unit.write_text(unit.read_text().replace("KillMode=mixed", "KillMode=gently"))
    assert "gently" in analyze("verify", unit).stderr


def test_how_exposed_it_is(unit: Path) -> None:
    done = analyze("security", "--offline=true", "--no-pager", unit)
    found = re.search(r"Overall exposure level for teacher.service: ([\d.]+)", done.stdout)
    assert found, done.stderr
    assert float(found[1]) <= EXPOSURE


def test_its_command_serves_and_its_signal_drains(
    unit: Path, model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    settings = configparser.ConfigParser(strict=False, interpolation=None, comment_prefixes=("#",))
    settings.optionxform = str  # type: ignore[assignment,method-assign]
    settings.read_string(UNIT.read_text())
    service = settings["Service"]
    fields = ServerConfig.model_fields
    assert float(service["TimeoutStopSec"]) > fields["drain_s"].default + fields["handoff_s"].default + 10
    command = shlex.split(service["ExecStart"])
    assert command[0].endswith("/teacher-server")
    config = tmp_path / "teacher.yaml"
    config.write_text(yaml.safe_dump({"model": str(model_folder("bert")), "port": 0, "metrics_port": -1}))
    words = [word.replace("/etc/talking-models/teacher.yaml", str(config)) for word in command[1:]]
    assert str(config) in words
    with subprocess.Popen(
        [sys.executable, "-m", "teacher_server", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            poll(process.stdout.readline, "it says where it serves", 60)
            process.send_signal(signal.Signals[service["KillSignal"]])
            assert process.wait(int(service["TimeoutStopSec"])) == 0
        finally:
            process.kill()
