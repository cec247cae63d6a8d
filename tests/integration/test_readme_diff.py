"""README's three lines: applied to the plain script they give the distilled one, and both run against a real server."""

from __future__ import annotations

import ast
import difflib
import os
import re
import subprocess
import sys
from pathlib import Path

import transformers as hf

from tests.integration.loops import student_folder
from tests.integration.processes import ROOT
from tests.integration.school import School
from tests.unit.student_client.run_setup import write_csv

EXAMPLES = ROOT / "examples"


def shown_diff() -> str:
    found = re.findall(
        r"```diff\n(--- examples/finetune_plain\.py\n.*?)```", (ROOT / "README.md").read_text(), re.DOTALL
    )
    assert len(found) == 1
    return str(found[0])


def applied(diff: str, text: str) -> str:
    """A unified diff applied to a text: every line it keeps or takes away must be there."""
    old, new, at = text.splitlines(), list[str](), 0
    for line in diff.splitlines()[2:]:
        if place := re.match(r"@@ -(\d+)", line):
            start = int(place[1]) - 1
            new += old[at:start]
            at = start
            continue
        sign, rest = line[:1], line[1:]
        if sign in (" ", "-", ""):
            assert old[at] == rest, f"line {at + 1}: {old[at]!r} is not {rest!r}"
            at += 1
        if sign in (" ", "+", ""):
            new.append(rest)
    return "\n".join(new + old[at:]) + "\n"


def test_the_diff_makes_the_distilled_script() -> None:
    plain, distilled = ((EXAMPLES / f"finetune_{name}.py").read_text() for name in ("plain", "distilled"))
    assert applied(shown_diff(), plain) == distilled
    changes = [line for line in difflib.ndiff(plain.splitlines(), distilled.splitlines()) if line[:1] == "+"]
    assert len(changes) == 3


def test_both_scripts_run(tmp_path: Path) -> None:
    """The plain one as it stands, and what the diff makes of it; their students load as any model does."""
    student, texts = student_folder(tmp_path / "model"), write_csv(tmp_path, rows=40)
    plain = tmp_path / "script.py"
    plain.write_text((EXAMPLES / "finetune_plain.py").read_text())
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    steps, found = [], []
    with (school := School()).app:
        for teacher in ([], [school.address]):
            if teacher:
                plain.write_text(applied(shown_diff(), plain.read_text()))
            command = [sys.executable, "script.py", str(student), str(texts), *teacher]
            done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200)
            assert done.returncode == 0, done.stderr[-3000:]
            found.append(ast.literal_eval(done.stdout.strip().splitlines()[-1]))
            steps.append(school.app.metrics.session_steps._value.get())
            assert hf.AutoModelForSequenceClassification.from_pretrained(tmp_path / "finetuned").num_labels == 2
    assert steps == [0, 8], "the teacher's codec stepped with the student, in the second run alone"
    assert all(0 <= float(scores["eval_loss"]) < 10 for scores in found)
