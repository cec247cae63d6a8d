"""Programs that tests use and pip does not bring: found here, or the test is skipped, or fails where they are required."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

__all__ = ["part"]

ROOT = Path(__file__).parent.parent
PLACES = (ROOT / ".parts" / "bin", Path(sys.executable).parent)


def part(name: str) -> Path:
    """The path of a program: `prometheus`, `promtool`, `chromium`, `helm`, ...

    Where it is missing, the test is skipped; with TALKING_MODELS_PARTS=required it fails.
    """
    found = shutil.which(name, path=os.pathsep.join([*map(str, PLACES), os.environ.get("PATH", "")]))
    if found is not None:
        return Path(found)
    sentence = f"{name} is not installed here; `make parts` installs it"
    if os.environ.get("TALKING_MODELS_PARTS") == "required":
        pytest.fail(sentence)
    pytest.skip(sentence)
