"""docs/deploy.md by copy and paste: the blocks marked `sh` of its first sections, in their order, in one shell, in a fresh folder."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.deploy.dockerfiles import ROOT
from tests.parts import part
from tests.unit.student_client.run_setup import write_csv

PAGE = (ROOT / "docs/deploy.md").read_text()
COMMANDS = {"teacher-server": "-m teacher_server", "student-client": "-m student_client", "python": ""}
LONG = ("See an alert fire", "Certificates and tokens")
"""Sections left to the long test: one waits for more than a minute, the other starts many processes."""


def blocks(*without: str) -> str:
    """All blocks marked sh, but those of some sections."""
    sections = re.split(r"^#{2,3} ", PAGE, flags=re.MULTILINE)
    kept = [section for section in sections if not section.startswith(tuple(without))] if without else sections
    return "\n".join(block for section in kept for block in re.findall(r"^```sh\n(.*?)^```", section, re.M | re.S))


def fresh_clone(folder: Path) -> Path:
    """What git has of deploy/; and the commands, as an installation leaves them on the path."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "deploy"]
    for name in subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    (folder / "bin").mkdir()
    for name, words in COMMANDS.items():
        (folder / "bin" / name).write_text(f'#!/bin/sh\nexec {sys.executable} {words} "$@"\n')
        (folder / "bin" / name).chmod(0o755)
    return folder


def pasted(script: str, clone: Path, model: Path, limit_s: float = 280) -> str:
    """What it prints. As root it runs where only loopback is: its fixed ports are then nobody else's."""
    # as the page, with fewer rows and steps: its data set is larger
    script = script.replace("--labelled 300 --unlabelled 1500", "--labelled 60 --unlabelled 40 --size tiny")
    script = script.replace("--max-steps 300", "--max-steps 60 --set data.validation=30 --set data.test=30")
    (clone / "pasted.sh").write_text(
        f"set -eu\ntrap 'kill $(jobs -p) 2> /dev/null || true' EXIT\n{script}\necho the end\n"
    )
    path = f"{clone / 'bin'}:{part('prometheus').parent}:{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment |= {"MODEL": str(model), "DATA": str(write_csv(clone))}
    alone = ["unshare", "--net", "sh", "-c", 'ip link set lo up && exec bash "$0"'] if os.geteuid() == 0 else ["bash"]
    done = subprocess.run(
        [*alone, "pasted.sh"], cwd=clone, env=environment, capture_output=True, text=True, timeout=limit_s
    )
    logs = "\n".join(f"{log.name}: {log.read_text()[-800:]}" for log in (clone / "runs/classroom").glob("*.log"))
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{logs}"
    return done.stdout


def check(said: str, clone: Path) -> None:
    assert said.endswith("the end\n")
    assert '"name":"TeacherDown"' in said, "the rules are loaded"
    assert said.count("talking: test accuracy") == 2, said
    page = (clone / "runs/classroom/page.html").read_text().lower()
    assert "<!doctype html>" in page


def test_one_machine(model_folder: Callable[[str], Path], tmp_path: Path) -> None:
    clone = fresh_clone(tmp_path)
    check(pasted(blocks(*LONG), clone, model_folder("bert")), clone)


@pytest.mark.slow
@pytest.mark.timeout(1000)
def test_until_an_alert_fires_and_with_certificates(model_folder: Callable[[str], Path], tmp_path: Path) -> None:
    clone = fresh_clone(tmp_path)
    said = pasted(blocks(), clone, model_folder("bert"), 900)
    check(said, clone)
    assert '"alertname":"TeacherDown"' in said
    assert '"state":"firing"' in said
    assert "round trip" in said, "of the ping with TLS and a token"
    assert "teacher_model_info{" in said, "of the metrics, with both, too"
    assert (clone / "deploy/secrets/tokens.json").stat().st_mode & 0o777 == 0o600


def test_every_block_marked_sh_is_run() -> None:
    assert len(blocks()) - len(blocks(*LONG)) > 1000
    assert blocks(*LONG).count("teacher-server serve") == 1
    assert "```sh" not in PAGE[PAGE.index("## systemd") :]
