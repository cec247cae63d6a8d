"""Writes deploy/docker/requirements.lock, or with `--cuda` requirements-cuda.lock: all that an image installs, pinned and hashed.

Asks pip what it would install for the extras `server` and `client` under constraints.txt, on this platform, and keeps name, version and
sha256, never where a file came from. Use it by `pip install --require-hashes --no-deps -r deploy/docker/requirements.lock`.
`--cuda` asks the plain index alone, as if pip had no configuration: its torch is the one for GPUs, and brings CUDA's libraries.
A package that is there already (a GPU image's torch) is left out by `--without NAME`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PLACE = ROOT / "deploy" / "docker"
LOCK, CUDA_LOCK = PLACE / "requirements.lock", PLACE / "requirements-cuda.lock"
PLAIN = {"PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": "", "PIP_EXTRA_INDEX_URL": ""}
OWN = "talking-models"


def resolved(extras: str, settings: dict[str, str]) -> list[dict[str, Any]]:
    """What pip would install into an empty environment."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        words = ["install", "--dry-run", "--ignore-installed", "--quiet", "--disable-pip-version-check"]
        words += ["--report", str(report), "--constraint", str(ROOT / "constraints.txt"), f"{ROOT}[{extras}]"]
        subprocess.run([sys.executable, "-m", "pip", *words], check=True, env=os.environ | settings)
        found: list[dict[str, Any]] = json.loads(report.read_text())["install"]
    return found


def lines(installed: list[dict[str, Any]], without: list[str]) -> list[str]:
    """One line a package, by name."""
    found = []
    for each in installed:
        name, version = each["metadata"]["name"].lower().replace("_", "-"), each["metadata"]["version"]
        if name == OWN or name in without:
            continue
        sha = each["download_info"].get("archive_info", {}).get("hashes", {}).get("sha256")
        if not sha:
            raise SystemExit(f"lock: pip gave no sha256 for {name} {version}; it must come as an archive")
        found.append(f"{name}=={version} --hash=sha256:{sha}")
    return sorted(found)


def main() -> None:
    """Writes the file and says how many there are."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--extras", default="server,client")
    parser.add_argument("--without", action="append", default=[], metavar="NAME")
    parser.add_argument("--cuda", action="store_true")
    given = parser.parse_args()
    lock, settings = (CUDA_LOCK, PLAIN) if given.cuda else (LOCK, {})
    found = lines(resolved(given.extras, settings), given.without)
    place = f"{platform.system()} {platform.machine()}, Python {platform.python_version_tuple()[0]}.{platform.python_version_tuple()[1]}"
    head = f"# Made by `make lock` from pyproject.toml [{given.extras}] and constraints.txt, for {place}.\n"
    lock.write_text(head + "\n".join(found) + "\n")
    print(f"{lock.relative_to(ROOT)}: {len(found)} packages")


if __name__ == "__main__":
    main()
