"""The Slurm scripts as they stand, by bash, in a made-up Slurm environment: a real teacher, real students, its signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.certificates import CertificateAuthority
from tests.deploy.dockerfiles import ROOT
from tests.integration.gate import poll
from tests.parts import part
from tests.unit.student_client.run_setup import write_csv

SCRIPTS = ROOT / "deploy/slurm"


@pytest.mark.parametrize("name", ["teacher", "students"])
def test_shellcheck_finds_nothing(name: str) -> None:
    done = subprocess.run([part("shellcheck"), SCRIPTS / f"{name}.sbatch"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("name", ["teacher", "students"])
def test_the_signal_comes_before_the_end(name: str) -> None:
    """To the script alone (B:), two minutes before the limit: more than a drain takes."""
    text = (SCRIPTS / f"{name}.sbatch").read_text()
    assert "\n#SBATCH --signal=B:TERM@120\n" in text
    assert text.index("#SBATCH") < text.index("set -euo pipefail")


class Cluster:
    """One node: this machine; requeued jobs are written down."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.classroom = folder / "classroom"
        self.classroom.mkdir()
        authority = CertificateAuthority(folder / "ca", "own")
        pair = authority.sign("teacher", "DNS:teacher")
        for source, name in ((authority.cert, "ca.pem"), (pair.cert, "teacher.pem"), (pair.key, "teacher.key")):
            (self.classroom / name).write_bytes(source.read_bytes())
        tools = folder / "bin"
        tools.mkdir()
        for name, module in (("teacher-server", "teacher_server"), ("student-client", "student_client")):
            self._tool(tools / name, f'exec {sys.executable} -m {module} "$@"')
        self._tool(tools / "scontrol", f'echo "$@" >> {folder}/scontrol')
        self.requeued = folder / "scontrol"
        self.environment = os.environ | {
            "PATH": f"{tools}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "CLASSROOM": str(self.classroom),
            "MODEL": str(model),
            "SLURM_CPUS_PER_TASK": "1",
            "SLURMD_NODENAME": "localhost",
            "PAUSE_S": "0.2",
        }
        words = ["token", "add", "students", "--tokens", "tokens.json", "--output", "student.token"]
        subprocess.run([tools / "teacher-server", *words], cwd=self.classroom, check=True, capture_output=True)

    def _tool(self, path: Path, line: str) -> None:
        path.write_text(f"#!/bin/sh\n{line}\n")
        path.chmod(0o755)

    def sbatch(self, script: str, job: int, *words: str, task: int = 0) -> subprocess.Popen[str]:
        """What Slurm does with a script: its copy is run by its own interpreter, in a process group of its own."""
        environment = self.environment | {"SLURM_JOB_ID": str(job), "SLURM_ARRAY_TASK_ID": str(task)}
        return subprocess.Popen(
            ["env", "--default-signal=TERM", SCRIPTS / f"{script}.sbatch", *words],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def jobs_requeued(self) -> list[str]:
        return self.requeued.read_text().split() if self.requeued.exists() else []


@pytest.fixture
def cluster(tmp_path: Path, model_folder: Callable[[str], Path]) -> Cluster:
    return Cluster(tmp_path, model_folder("bert"))


@pytest.fixture
def teacher(cluster: Cluster) -> Iterator[subprocess.Popen[str]]:
    process = cluster.sbatch("teacher", 7, "--threads", "1", "--deterministic")
    try:
        poll(lambda: (cluster.classroom / "address").exists() or process.poll(), "the address is written", 60)
        assert process.poll() is None, process.communicate()[0]
        yield process
    finally:
        end(process)


def end(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def flags(folder: Path, steps: int) -> list[str]:
    words = ["--data", str(write_csv(folder)), "--method", "talking", "--size", "tiny", "--max-steps", str(steps)]
    words += ["--labelled", "60", "--unlabelled", "40", "--set", "data.validation=30", "--set", "data.test=30"]
    return [*words, "--set", "training.batch_size=8", "--set", "training.tensorboard=false"]


def test_students_find_the_teacher_and_both_end_by_signal(
    cluster: Cluster, teacher: subprocess.Popen[str], tmp_path: Path
) -> None:
    told = [cluster.sbatch("students", 8, *flags(tmp_path, 3), task=task) for task in (0, 1)]
    for task, student in enumerate(told):
        said, _ = student.communicate(timeout=120)
        assert student.returncode == 0, said
        assert (cluster.classroom / f"runs/{task}/result.json").exists()
    teacher.terminate()
    assert teacher.wait(60) == 0, "drained"
    assert cluster.jobs_requeued() == ["requeue", "7"], "to serve on after its time limit"


def test_a_student_goes_on_after_its_time_limit(
    cluster: Cluster, teacher: subprocess.Popen[str], tmp_path: Path
) -> None:
    words = [*flags(tmp_path, 400), "--set", "training.log_every=1"]
    first = cluster.sbatch("students", 9, *words)
    try:
        steps = cluster.classroom / "runs/0/metrics.jsonl"
        poll(lambda: steps.exists() and steps.read_text().count("\n") > 3, "it trains", 60)
        first.terminate()
        assert first.wait(60) == 128 + signal.SIGTERM
    finally:
        end(first)
    assert cluster.jobs_requeued() == ["requeue", "9"]
    done = steps.read_text().count("\n")
    again = cluster.sbatch("students", 9, *words)
    try:
        poll(lambda: steps.read_text().count("\n") > done, "it goes on", 60)
        again.terminate()
        assert again.wait(60) in (0, 128 + signal.SIGTERM)
    finally:
        end(again)
    numbers = [int(line.partition('"step": ')[2].partition(",")[0]) for line in steps.read_text().splitlines()]
    assert numbers == list(range(1, len(numbers) + 1)), "each step once"
