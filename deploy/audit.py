"""Looks for known faults of what the images install, by pip-audit; says what it could not look at."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
LOCK = ROOT / "deploy" / "docker" / "requirements.lock"
FAULTS, CANNOT = 1, 3


def pinned(lock: str) -> list[str]:
    """Each package as name==version; a build's own mark, as +cpu, is no part of the version that faults are known by."""
    return [
        f"{name}=={version}" for name, version in re.findall(r"^([\w.-]+)==([^+\s]+)\S* --hash", lock, re.MULTILINE)
    ]


def verdict(report: dict[str, Any]) -> tuple[int, list[str]]:
    """The exit code, and what is said, of pip-audit's report: a package that it skipped was not found to be good."""
    skipped = [each["name"] for each in report["dependencies"] if "skip_reason" in each]
    faults = [
        f"{each['name']} {each['version']}: {fault['id']}, repaired in {', '.join(fault['fix_versions']) or 'no version yet'}"
        for each in report["dependencies"]
        for fault in each.get("vulns", ())
    ]
    looked_at = len(report["dependencies"]) - len(skipped)
    said = [*faults, f"audit: {looked_at} packages were looked at, {len(faults)} known faults"]
    if skipped:
        said.append(f"audit: {len(skipped)} were not looked at, the database does not know them: {', '.join(skipped)}")
    return (FAULTS if faults else CANNOT if skipped or not looked_at else 0), said


def main() -> int:
    """0: all were looked at and nothing is known; 1: faults; 3: it could not look at all, or not at some."""
    if importlib.util.find_spec("pip_audit") is None:
        print("audit: nothing was looked at, pip-audit is not installed; pip install 'talking-models[audit]'")
        return CANNOT
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("\n".join(pinned(LOCK.read_text())) + "\n")
        file.flush()
        words = [
            "--requirement",
            file.name,
            "--disable-pip",
            "--no-deps",
            "--progress-spinner",
            "off",
            "--format",
            "json",
        ]
        done = subprocess.run([sys.executable, "-m", "pip_audit", *words], capture_output=True, text=True)
    try:
        code, said = verdict(json.loads(done.stdout))
    except (ValueError, KeyError):
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        code, said = (
            CANNOT,
            [f"audit: nothing was looked at, the database of faults cannot be reached from here: {reason}"],
        )
    print("\n".join(said))
    return code


if __name__ == "__main__":
    sys.exit(main())
