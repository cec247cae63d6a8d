"""`make help` lists every target with a sentence, and make can read what each would do; runs nothing."""

from __future__ import annotations

import re
import subprocess

from tests.test_architecture import ROOT

TEXT = (ROOT / "Makefile").read_text()
PHONY = re.findall(r"\S+", re.findall(r"^\.PHONY: (.*)$", TEXT, re.MULTILINE)[0])
BENCHES = re.findall(r"\S+", re.findall(r"^BENCHES := (.*)$", TEXT, re.MULTILINE)[0])


def make(*words: str) -> str:
    command = ["make", "--no-print-directory", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True).stdout


def test_help_lists_every_target() -> None:
    listed = dict(re.findall(r"^  (\S+) +(\S.*)$", make("help"), re.MULTILINE))
    written = set(re.findall(r"^([a-z-]+):(?!=)", TEXT, re.MULTILINE)) - {f"bench-{name}" for name in BENCHES}
    assert written <= set(PHONY)
    assert set(listed) >= set(PHONY) | {"bench-%"}
    assert make() == make("help"), "make alone says what there is"


def test_make_can_read_every_target() -> None:
    said = make("--dry-run", *PHONY, *(f"bench-{name}" for name in BENCHES))
    for name in BENCHES:
        assert f"benchmarks/{'simulate_scale' if name == 'scale' else f'bench_{name}'}.py" in said
    for file in re.findall(r"\bpython ([\w/]+\.py)", said):
        assert (ROOT / file).exists(), file
    for module in re.findall(r"\bpython -m ((?:tests|docs)[\w.]*)", said):
        place = ROOT / module.replace(".", "/")
        assert place.is_dir() or place.with_suffix(".py").exists(), module
