"""What is installed: the files of the wheel and the source archive, each side without the other's dependencies, clean environments."""

from __future__ import annotations

import importlib.metadata as metadata
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.integration.gate import poll
from tests.unit.student_client.run_setup import write_csv

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PACKAGES = ("command_config", "teaching_protocol", "task_data", "student_models", "teacher_server", "student_client")
OTHER = {"client": "teacher_server", "server": "student_client"}
SIDE = {"client": "student_client", "server": "teacher_server"}


def tracked() -> list[Path]:
    """What git has, or would take: what a fresh clone holds."""
    words = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    found = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    return [Path(name) for name in found if name and (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The wheel and the source archive of a fresh clone; the wheel is made from the archive."""
    folder = tmp_path_factory.mktemp("built")
    for name in tracked():
        if name.parts[0] in (*PACKAGES, "protos", "tests", "benchmarks") or len(name.parts) == 1:
            (folder / "clone" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / "clone" / name)
    words = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(folder / "clone")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,), (archive,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return wheel, archive


def test_the_wheel_has_all_that_is_needed_and_nothing_else(built: tuple[Path, Path]) -> None:
    wheel = set(zipfile.ZipFile(built[0]).namelist())
    modules = {str(name) for name in tracked() if name.parts[0] in PACKAGES}
    assert {f"{name}/py.typed" for name in PACKAGES} <= modules
    assert any(name.startswith("teacher_server/web/static/") for name in modules)
    rest = wheel - modules
    assert modules <= wheel, modules - wheel
    assert {name.rsplit("/", 1)[-1] for name in rest if "/data/share/talking-models/" in name} == {
        "directory.proto",
        "teacher.proto",
        "tensor.proto",
    }
    assert all(".dist-info/" in name or ".data/data/share/" in name for name in rest), rest


def test_the_source_archive_builds_the_same_and_holds_no_tests(built: tuple[Path, Path]) -> None:
    with tarfile.open(built[1]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "README.md", "CHANGELOG.md", "protos/teaching_protocol/v1/teacher.proto"} <= names
    assert {name.partition("/")[0] for name in names} & {"tests", "benchmarks", "deploy", "docs"} == set()


def test_the_metadata_says_what_is_true(built: tuple[Path, Path]) -> None:
    wheel = zipfile.ZipFile(built[0])
    (name,) = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
    text = wheel.read(name).decode()
    assert f"Version: {PROJECT['version']}" in text
    assert "Requires-Python: >=3.11" in text
    assert "Classifier: Typing :: Typed" in text
    for extra in ("client", "server"):
        assert f"Provides-Extra: {extra}" in text


def wanted(extra: str) -> set[str]:
    """The distributions that an installation with one extra brings, by the metadata of what is installed here."""
    todo = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"][extra]]
    found: set[str] = set()
    while todo:
        each = Requirement(todo.pop())
        name = canonicalize_name(each.name)
        if name not in found:
            found.add(name)
            for line in metadata.requires(name) or []:
                further = Requirement(line)
                if any(
                    further.marker is None or further.marker.evaluate({"extra": each}) for each in (*each.extras, "")
                ):
                    todo.append(line)
    return found


IMPORT_ALL = """
import builtins, importlib
blocked, own, names, found = set({blocked!r}), set({own!r}), {names!r}, builtins.__import__
def guarded(name, globals=None, locals=None, fromlist=(), level=0):
    asks = (globals or {{}}).get("__name__", "").partition(".")[0]
    if level == 0 and asks in own and name.partition(".")[0] in blocked:
        raise ModuleNotFoundError(f"{{globals['__name__']}} imports {{name}}", name=name)
    return found(name, globals, locals, fromlist, level)
builtins.__import__ = guarded
for name in names:
    importlib.import_module(name)
"""
"""What our own modules import is held back; a library's own optional parts are its own affair."""
OPTIONAL = {"teacher_server.finetuning", "student_client.demo", "student_client.compare.plots"}
"""Modules of another extra: `finetune`, `demo`; the commands import them when they are asked for."""


@pytest.mark.parametrize("extra", ["client", "server"])
def test_each_side_is_imported_without_what_the_other_needs(extra: str) -> None:
    """Every module of one side, where nothing can be imported but what its extra brings."""
    brings = wanted(extra)
    own = {
        name
        for name, owners in metadata.packages_distributions().items()
        if brings & set(map(canonicalize_name, owners))
    }
    blocked = {name for name in metadata.packages_distributions() if name not in own and name not in PACKAGES}
    blocked |= {OTHER[extra]}
    assert {"client": "starlette", "server": "sklearn"}[extra] in blocked
    names = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for package in (SIDE[extra], "student_models", "task_data", "command_config", "teaching_protocol")
        for path in sorted((ROOT / package).rglob("*.py"))
        if path.stem != "__main__"
    ]
    names = [name for name in names if not any(name == each or name.startswith(each + ".") for each in OPTIONAL)]
    script = IMPORT_ALL.format(blocked=sorted(blocked), own=PACKAGES, names=names)
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_clean_environments_with_one_extra_each_talk(
    built: tuple[Path, Path], model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    """A server from the wheel and a client from the source archive, in environments of their own; needs a package index."""
    for extra, file in (("server", built[0]), ("client", built[1])):
        subprocess.run([sys.executable, "-m", "venv", str(tmp_path / extra)], check=True)
        words = [str(tmp_path / extra / "bin/python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        words += ["--constraint", str(ROOT / "constraints.txt"), f"{file}[{extra}]"]
        done = subprocess.run(words, capture_output=True, text=True, timeout=1200)
        assert done.returncode == 0, done.stderr[-2000:]
        packages = metadata.distributions(
            path=[str(next((tmp_path / extra / "lib").glob("python*")) / "site-packages")]
        )
        installed = {canonicalize_name(each.metadata["Name"]) for each in packages}
        assert ("starlette" in installed) == (extra == "server")
        assert ("scikit-learn" in installed) == (extra == "client")
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    command = [str(tmp_path / "server/bin/teacher-server"), "serve", "--model", str(model_folder("bert"))]
    log = tmp_path / "teacher.log"
    with log.open("w") as out:
        teacher = subprocess.Popen(
            [*command, "--port", "0", "--metrics-port", "-1"], cwd=tmp_path, env=kept, stdout=out, stderr=out
        )
    try:
        poll(lambda: "serving" in log.read_text() or teacher.poll() is not None, "the teacher serves", 120)
        address = next(line.split()[1] for line in log.read_text().splitlines() if line.startswith("serving"))
        words = [
            str(tmp_path / "client/bin/student-client"),
            "train",
            "--data",
            str(write_csv(tmp_path)),
            "--size",
            "tiny",
        ]
        words += ["--labelled", "60", "--unlabelled", "40", "--set", "data.validation=30", "--set", "data.test=30"]
        words += ["--method", "talking", "--max-steps", "3", "--teacher", address, "--output", "run"]
        done = subprocess.run(words, cwd=tmp_path, env=kept, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "run/student/student.json").exists()
    finally:
        teacher.kill()
        teacher.wait(20)
