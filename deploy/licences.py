"""Writes docs/licences.md: every package that gets installed and its licence, as its own metadata says."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "licences.md"
LOCK = ROOT / "deploy" / "docker" / "requirements.lock"
LONGEST = 60


def licence(name: str) -> str:
    """The SPDX expression, else what the classifiers say, else the first line of the licence field."""
    facts = metadata.metadata(name)
    if facts.get("License-Expression"):
        return str(facts["License-Expression"])
    classes = [each.rpartition(" :: ")[2] for each in facts.get_all("Classifier", []) if each.startswith("License ::")]
    stated = (facts.get("License") or "").strip().split("\n")[0]
    return ", ".join(classes) or stated[:LONGEST] or "not stated"


def main() -> None:
    """Writes the page; a package of the lock that is not installed here is said to be so."""
    rows = []
    for name, version in re.findall(r"^([\w.-]+)==(\S+) --hash", LOCK.read_text(), re.MULTILINE):
        try:
            rows.append(f"| {name} | {version} | {licence(name)} |")
        except metadata.PackageNotFoundError:
            rows.append(f"| {name} | {version} | not installed where this page was made |")
    head = (
        "# Licences of what is installed\n\nMade by `make licences` from `deploy/docker/requirements.lock` and each package's own "
        "metadata. Models and data sets: [data_and_teachers.md](data_and_teachers.md).\n\n"
        "| package | version | licence |\n|---|---|---|\n"
    )
    PAGE.write_text(head + "\n".join(rows) + "\n")
    print(f"{PAGE.relative_to(ROOT)}: {len(rows)} packages")


if __name__ == "__main__":
    main()
