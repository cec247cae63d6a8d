"""Looks for known faults of what the images install, by pip-audit; says what is missing where that cannot run."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
LOCK = ROOT / "deploy" / "docker" / "requirements.lock"
CANNOT = 3


def main() -> int:
    """0: nothing known; 1: faults, listed above; 3: it could not look, which is not the same as nothing known."""
    if importlib.util.find_spec("pip_audit") is None:
        print("audit: nothing was looked at, pip-audit is not installed; pip install 'talking-models[audit]'")
        return CANNOT
    words = ["--requirement", str(LOCK), "--disable-pip", "--require-hashes", "--progress-spinner", "off"]
    done = subprocess.run([sys.executable, "-m", "pip_audit", *words], capture_output=True, text=True)
    print(done.stdout, end="")
    if done.returncode == 0:
        print(f"audit: no known faults in {LOCK.relative_to(ROOT)}")
        return 0
    if "vulnerabilit" in done.stdout + done.stderr and "Found" in done.stderr:
        print(done.stderr, end="")
        return 1
    reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
    print(f"audit: nothing was looked at, the database of faults cannot be reached from here: {reason}")
    return CANNOT


if __name__ == "__main__":
    sys.exit(main())
