"""What `--print` prints is valid where it goes: schemas of Kubernetes, shellcheck, and a program that runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from student_client.cli import main
from student_client.fleet.elsewhere import PLACES
from tests.parts import part
from tests.test_architecture import ROOT

TEXT = """# a comment: with "quotes" and $signs
name: My Fleet_1
at_once: 2
threads: 3
restarts: 4
grace_s: 90
output: "runs/it's mine"
students:
- {name: ann}
- {name: bob, settings: {training.lr: 0.01}}
grid: {seeds: [0, 1]}
"""


def printed(place: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    file = folder / "the fleet.yaml"
    file.write_text(TEXT.replace("My Fleet_1", "My-Fleet_1"))
    monkeypatch.setattr(
        sys, "argv", ["student-client", "fleet", str(file), "--print", place, "--image", "here/student:1"]
    )
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    return capsys.readouterr().out


def test_kubernetes(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    found: dict[str, Any] = {}
    for each in yaml.safe_load_all(printed("kubernetes", tmp_path, capsys, monkeypatch)):
        kubernetes_validate.validate(each, "1.34", strict=True)
        found[each["kind"]] = each
    assert set(found) == {"ConfigMap", "PersistentVolumeClaim", "Job"}
    assert found["ConfigMap"]["data"] == {"fleet.yaml": (tmp_path / "the fleet.yaml").read_text()}
    job = found["Job"]["spec"]
    assert (job["completions"], job["parallelism"], job["backoffLimitPerIndex"]) == (4, 2, 4)
    pod = job["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] > 90
    (container,) = pod["containers"]
    assert container["image"] == "here/student:1"
    words = container["command"]
    assert words[:3] == ["student-client", "fleet", "/etc/fleet/fleet.yaml"]
    assert words[words.index("--index") + 1] == "$(JOB_COMPLETION_INDEX)"
    assert {each["metadata"]["name"] for each in found.values()} == {"my-fleet-1"}


def test_slurm(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    text = printed("slurm", tmp_path, capsys, monkeypatch)
    script = tmp_path / "fleet.sbatch"
    script.write_text(text)
    subprocess.run(["bash", "-n", script], check=True)
    checked = subprocess.run(
        [part("shellcheck"), "--severity=style", script], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout
    assert "#SBATCH --array=0-3%2\n" in text
    assert "#SBATCH --cpus-per-task=3\n" in text
    assert "#SBATCH --signal=TERM@90\n" in text
    said = tmp_path / "said"
    for name, body in {"srun": f'printf "%s\\n" "$@" > {said}; exit 143', "scontrol": f'echo "$@" >> {said}'}.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    slurm = {"SLURM_ARRAY_TASK_ID": "2", "SLURM_ARRAY_JOB_ID": "77", "SLURM_CPUS_PER_TASK": "3"}
    ran = subprocess.run(["bash", script], env={"PATH": f"{tmp_path}:/usr/bin:/bin"} | slurm, check=False)
    assert ran.returncode == 143
    words = said.read_text().splitlines()
    assert words[1:6] == ["student-client", "fleet", str(tmp_path / "the fleet.yaml"), "--index", "2"]
    assert words[words.index("--output") + 1] == "runs/it's mine"
    assert words[-1] == "requeue 77_2", "a student whose time was over is queued again"


RAY = """
import os, subprocess
running, most, said = set(), 0, []
class Task:
    def __init__(self, function): self.function = function
    def remote(self, index):
        handle = (index, self.function)
        running.add(index)
        assert len(running) <= 2, "more at once than asked"
        return handle
def remote(**options):
    assert options == {"num_cpus": 3, "max_retries": 4}
    return Task
def init(): pass
def wait(handles, num_returns):
    return handles[:num_returns], handles[num_returns:]
def get(handle):
    running.discard(handle[0])
    return handle[1](handle[0])
"""


def test_ray(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray itself is not here: its four calls that the program makes are, and `student_client` says what it was told."""
    program = tmp_path / "fleet_ray.py"
    program.write_text(printed("ray", tmp_path, capsys, monkeypatch))
    (tmp_path / "ray.py").write_text(RAY)
    (tmp_path / "student_client.py").write_text(
        "import json, sys; print(json.dumps(sys.argv[1:])); sys.exit(int('1' in sys.argv))"
    )
    ran = subprocess.run(
        [sys.executable, program],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 1, ran.stderr
    lines = ran.stdout.splitlines()
    told = [json.loads(line) for line in lines if line.startswith("[")]
    assert [words[:4] for words in told] == [
        ["fleet", str(tmp_path / "the fleet.yaml"), "--index", str(index)] for index in range(4)
    ]
    assert "student 1: exit code 1" in lines


def test_another_place_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = ROOT / "examples" / "fleet.yaml"
    monkeypatch.setattr(sys, "argv", ["student-client", "fleet", str(file), "--print", "cloud"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    assert f"received 'cloud', expected one of {', '.join(PLACES)}" in capsys.readouterr().err
