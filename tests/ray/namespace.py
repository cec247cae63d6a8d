"""A program in a network of its own that has nothing but loopback: Ray listens on every interface."""

from __future__ import annotations

import importlib.util
import os
import secrets
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.parts import ROOT, part

__all__ = ["alone"]

_INSIDE = 'ip link set lo up && exec "$@"'


def alone(module: str, *words: object, folder: Path, limit_s: float) -> str:
    """Runs `python -m module words` there; gives what it says. It and all that it has started are gone when it returns.

    Skips the test where the machine allows no namespaces.
    """
    if importlib.util.find_spec("ray") is None:
        given_up = pytest.fail if os.environ.get("TALKING_MODELS_PARTS") == "required" else pytest.skip
        given_up("Ray is not installed here: pip install 'talking-models[ray]'")
    unshare, _ = part("unshare"), part("ip")
    around = [str(unshare), "--net", "--pid", "--fork", "--kill-child", "--mount-proc", "bash", "-c"]
    if subprocess.run([*around, _INSIDE, "bash", "true"], capture_output=True).returncode:
        pytest.skip("this machine does not allow network namespaces")
    with tempfile.TemporaryDirectory(prefix="tm-ray-") as short:  # Ray's sockets have short paths
        known = {"RAY_TMPDIR": short, "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0"}
        environment = {**os.environ, **known, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        command = [*around, _INSIDE, "bash", sys.executable, "-m", module, *map(str, words)]
        done = subprocess.run(
            command,
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=limit_s,
        )
    assert done.returncode == 0, done.stdout[-6000:]
    return done.stdout
