"""What the images install is pinned and hashed, agrees with constraints.txt, names no host; and an audit that could not look says so."""

from __future__ import annotations

import re
import runpy
from typing import Any

import pytest

from tests.test_architecture import ROOT

LOCK = (ROOT / "deploy/docker/requirements.lock").read_text()
LINE = re.compile(r"[a-z0-9._-]+==\S+ --hash=sha256:[0-9a-f]{64}")


def test_every_line_has_a_version_and_a_hash() -> None:
    lines = LOCK.splitlines()[1:]
    assert len(lines) > 40
    for line in lines:
        assert LINE.fullmatch(line), line
    assert "://" not in LOCK
    assert "index" not in LOCK


def test_the_lock_agrees_with_the_constraints() -> None:
    locked = dict(line.split(" ")[0].split("==") for line in LOCK.splitlines()[1:])
    pinned = dict(line.lower().replace("_", "-").split("==") for line in (ROOT / "constraints.txt").read_text().split())
    assert {"torch", "grpcio", "protobuf", "transformers", "safetensors", "filelock"} <= locked.keys()
    for name, version in locked.items():
        if name in pinned:
            assert version.partition("+")[0] == pinned[name], name


def test_the_page_of_licences_has_every_package() -> None:
    page = (ROOT / "docs/licences.md").read_text()
    for line in LOCK.splitlines()[1:]:
        name, version = line.split(" ")[0].split("==")
        assert f"| {name} | {version} |" in page
    assert "not stated" not in page


GOOD = {"name": "a", "version": "1", "vulns": []}
BAD = {"name": "b", "version": "2", "vulns": [{"id": "CVE-1", "fix_versions": ["3"]}]}
SKIPPED = {"name": "c", "skip_reason": "not found"}


@pytest.mark.parametrize(
    ("found", "code", "sentence"),
    [
        ([GOOD], 0, "1 packages were looked at, 0 known faults"),
        ([GOOD, BAD], 1, "b 2: CVE-1, repaired in 3"),
        ([GOOD, SKIPPED], 3, "1 were not looked at, the database does not know them: c"),
        ([SKIPPED], 3, "0 packages were looked at"),
        ([BAD, SKIPPED], 1, "CVE-1"),
        ([], 3, "0 packages"),
    ],
)
def test_an_audit_that_did_not_look_is_no_good_news(found: list[dict[str, Any]], code: int, sentence: str) -> None:
    verdict = runpy.run_path(str(ROOT / "deploy/audit.py"))["verdict"]
    got, said = verdict({"dependencies": found})
    assert got == code
    assert sentence in "\n".join(said)


def test_what_is_audited_is_what_is_locked() -> None:
    pinned = runpy.run_path(str(ROOT / "deploy/audit.py"))["pinned"](LOCK)
    assert len(pinned) == len(LOCK.splitlines()) - 1
    assert "torch==2.13.0" in pinned
