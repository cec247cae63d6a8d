"""The Dockerfiles without an engine: what they copy exists and suffices, who runs, how it starts, ends and is probed."""

from __future__ import annotations

import ast
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from teacher_server.config import ServerConfig
from tests.deploy.dockerfiles import ROOT, Instruction, is_sent_to_the_builder, read_stages
from tests.parts import part

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
IMAGES = {"teacher": ("teacher-server", "teacher_server"), "student": ("student-client", "student_client")}
LOCKS = ("requirements.lock", "requirements-cuda.lock")


def stages(image: str, lock: str = LOCKS[0]) -> list[list[Instruction]]:
    return read_stages(ROOT / f"deploy/docker/{image}.Dockerfile", LOCK=lock)


def only(instructions: list[Instruction], name: str) -> Instruction:
    found = [each for each in instructions if each.name == name]
    assert len(found) == 1, (name, found)
    return found[0]


def copied(image: str, lock: str = LOCKS[0]) -> list[str]:
    """What the first stage copies out of the repository."""
    return [source for each in stages(image, lock)[0] if each.name == "COPY" for source in each.words[:-1]]


@pytest.mark.parametrize("image", IMAGES)
def test_hadolint_finds_nothing(image: str) -> None:
    done = subprocess.run(
        [part("hadolint"), ROOT / f"deploy/docker/{image}.Dockerfile"], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("lock", LOCKS)
@pytest.mark.parametrize("image", IMAGES)
def test_what_is_copied_exists_and_reaches_the_builder(image: str, lock: str) -> None:
    assert len(copied(image, lock)) > 5
    for source in copied(image, lock):
        assert (ROOT / source).exists(), source
        assert is_sent_to_the_builder(source), source


def test_nothing_else_reaches_the_builder() -> None:
    for path in (".git", "deploy/secrets/teacher.key", "runs", "tests", ".venv", "teacher_server/__pycache__/cli.pyc"):
        assert not is_sent_to_the_builder(path), path


@pytest.mark.parametrize("image", IMAGES)
def test_what_is_copied_is_all_that_is_imported(image: str) -> None:
    """Every package of ours that the command reaches by imports is there, and no other."""
    ours = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests"}
    needed, new = set(), {IMAGES[image][1]}
    while new:
        needed |= new
        new = {name for package in new for name in imports(ROOT / package)} & ours - needed
    assert set(copied(image)) & ours == needed


def imports(package: Path) -> set[str]:
    found = set()
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            found |= {name.partition(".")[0] for name in names}
    return found


@pytest.mark.parametrize("image", IMAGES)
def test_it_starts_our_command_as_nobody_in_particular(image: str) -> None:
    last = stages(image)[-1]
    assert only(last, "ENTRYPOINT").exec_form == [IMAGES[image][0]]
    assert IMAGES[image][0] in PROJECT["project"]["scripts"]
    assert only(last, "CMD").exec_form
    assert only(last, "STOPSIGNAL").rest == "SIGTERM"
    user, group = only(last, "USER").rest.split(":")
    assert int(user) > 0
    assert int(group) > 0


@pytest.mark.parametrize("image", IMAGES)
def test_it_is_small_and_holds_no_secret(image: str) -> None:
    first, last = stages(image)[0], stages(image)[-1]
    assert [each.rest for each in last if each.name == "COPY"] == ["--from=build /opt/venv /opt/venv"]
    for each in first + last:
        if each.name in ("ARG", "ENV"):
            assert not re.search(r"token|secret|password|key=|credential", each.rest, re.IGNORECASE), each
        if "pip install" in each.rest:
            assert "--no-cache-dir" in each.rest
            assert "--no-deps" in each.rest
            assert "--require-hashes" in each.rest or each.rest.endswith(" ."), each


@pytest.mark.parametrize("image", IMAGES)
def test_malloc_is_left_to_the_command(image: str) -> None:
    """A variable of glibc's would turn off what the command sets; and a base without glibc has nothing to set."""
    last = stages(image)[-1]
    assert not re.search(r"MALLOC_|GLIBC_TUNABLES", " ".join(each.rest for each in last))
    assert "alpine" not in only(last, "FROM").rest


def test_the_teacher_is_probed_where_it_serves() -> None:
    last = stages("teacher")[-1]
    fields = ServerConfig.model_fields
    assert only(last, "EXPOSE").words == [str(fields["port"].default), str(fields["metrics_port"].default)]
    probe = only(last, "HEALTHCHECK").rest
    assert f'"python", "-m", "teacher_server.probe", "127.0.0.1:{fields["port"].default}"' in probe
    assert only(stages("student")[-1], "HEALTHCHECK").rest == "NONE"


@pytest.mark.parametrize("lock", LOCKS)
def test_locks_are_pinned_and_hashed(lock: str) -> None:
    head, *lines = (ROOT / "deploy/docker" / lock).read_text().splitlines()
    assert "Python 3.11" in head
    pinned = dict(line.lower().replace("_", "-").split("==") for line in (ROOT / "constraints.txt").read_text().split())
    for line in lines:
        found = re.fullmatch(r"([a-z0-9._-]+)==(\S+) --hash=sha256:[0-9a-f]{64}", line)
        assert found, line
        name, version = found.groups()
        assert version.partition("+")[0] == pinned.get(name, version.partition("+")[0]), name


@pytest.mark.parametrize("lock", LOCKS)
def test_the_base_has_the_python_of_the_lock(lock: str) -> None:
    version = re.search(r"Python (\d+\.\d+)", (ROOT / "deploy/docker" / lock).read_text())
    assert version
    for image in IMAGES:
        assert stages(image)[0][0].rest.startswith(f"python:{version[1]}-")
