"""What the Dockerfiles do, done without an engine: their RUN lines into a clean virtual environment, their exact commands from it.

Minutes, and needs a package index: `make check-images`.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from tests.deploy.dockerfiles import ROOT, Instruction, is_sent_to_the_builder, read_stages
from tests.integration.gate import poll
from tests.unit.student_client.run_setup import write_csv

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

PLACES = ("/opt/venv", "/src", "/cache", "/runs", "/etc/talking-models")


class Image:
    """A folder in which the absolute paths of a Dockerfile lie; its last stage sees no more of it than it copies."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        self._build, self._last = read_stages(ROOT / f"deploy/docker/{name}.Dockerfile", LOCK="requirements.lock")
        self._variables = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"}

    def placed(self, text: str) -> str:
        """The text with each absolute path of the image where it lies here."""
        for place in PLACES:
            text = text.replace(place, f"{self.folder}{place}")
        return text

    def build(self) -> None:
        """COPY and RUN of the first stage, by its own words; then nothing of it is left but what is copied on."""
        for place in PLACES:
            (self.folder / place.lstrip("/")).mkdir(parents=True, exist_ok=True)
        source = self.folder / "src"
        for each in self._build:
            if each.name == "COPY":
                self._copy(each, source)
            elif each.name == "RUN":
                # pip's own settings (an index, a certificate) are the machine's; nothing else of this process is
                kept = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
                run = subprocess.run(
                    ["sh", "-c", self.placed(each.rest)], cwd=source, env=self._pythons() | kept, capture_output=True
                )
                assert run.returncode == 0, (each.rest, run.stderr[-2000:])
        shutil.rmtree(source)
        for each in self._last:
            if each.name == "ENV":
                self._set(each)

    def _pythons(self) -> dict[str, str]:
        found = shutil.which("python3", path=os.environ["PATH"].partition(":")[2] or os.environ["PATH"])
        return {"PATH": f"{Path(found or '/usr/bin/python3').parent}:/usr/bin:/bin", "HOME": os.environ["HOME"]}

    def _copy(self, each: Instruction, source: Path) -> None:
        *names, target = each.words
        for name in names:
            assert is_sent_to_the_builder(name)
            to = source / target / Path(name).name if target.endswith("/") else source / target
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, to, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
            else:
                shutil.copy(ROOT / name, to)

    def _set(self, each: Instruction) -> None:
        for word in each.words:
            name, _, value = word.partition("=")
            self._variables[name] = self.placed(value).replace("$PATH", self._variables["PATH"])

    def words(self, name: str) -> list[str]:
        """ENTRYPOINT, CMD or HEALTHCHECK's command, by their own words."""
        rest = next(each.rest for each in self._last if each.name == name)
        return Instruction(name, rest[rest.index("[") :]).exec_form or []

    def start(self, *words: str) -> subprocess.Popen[str]:
        command = [self.placed(word) for word in words]
        command[0] = shutil.which(command[0], path=self._variables["PATH"]) or command[0]
        environment = self._variables | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        return subprocess.Popen(
            command, cwd=self.folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def run(self, *words: str) -> tuple[int, str]:
        process = self.start(*words)
        said, _ = process.communicate(timeout=300)
        return process.returncode, said


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Image]:
    found = {name: Image(tmp_path_factory.mktemp(name), name) for name in ("teacher", "student")}
    for image in found.values():
        image.build()
    return found


@contextmanager
def serving(image: Image) -> Iterator[subprocess.Popen[str]]:
    """The teacher by the image's own command, once its own health check says so."""
    process = image.start(*image.words("ENTRYPOINT"), *image.words("CMD"))
    try:
        poll(lambda: image.run(*image.words("HEALTHCHECK"))[0] == 0 or process.poll(), "the teacher is healthy", 120)
        assert process.poll() is None, process.communicate()[0]
        yield process
    finally:
        process.kill()
        process.communicate()


def test_the_images_commands_serve_and_train(
    images: dict[str, Image], model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    teacher, student = images["teacher"], images["student"]
    config = {"model": str(model_folder("bert")), "metrics_port": -1, "threads": 1}
    Path(teacher.placed("/etc/talking-models/teacher.yaml")).write_text(yaml.safe_dump(config))
    assert teacher.run(*teacher.words("HEALTHCHECK"))[0] == 1, "nobody serves yet"
    with serving(teacher) as process:
        flags = ["--data", str(write_csv(tmp_path)), "--teacher", "127.0.0.1:50051", "--size", "tiny", "--threads", "1"]
        flags += ["--labelled", "60", "--unlabelled", "40", "--set", "data.validation=30", "--set", "data.test=30"]
        flags += ["--method", "talking", "--max-steps", "3", "--restartable", "--output", "/runs/one"]
        code, said = student.run(*student.words("ENTRYPOINT"), "train", *flags)
        assert code == 0, said
        assert Path(student.placed("/runs/one/student")).is_dir()
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


def test_each_image_holds_its_own_side(images: dict[str, Image]) -> None:
    for name, other in (("teacher", "student_client"), ("student", "teacher_server")):
        code, said = images[name].run("python", "-c", f"import {other}")
        assert code == 1
        assert f"No module named '{other}'" in said


def test_the_student_says_what_it_can_do(images: dict[str, Image]) -> None:
    code, said = images["student"].run(*images["student"].words("ENTRYPOINT"), *images["student"].words("CMD"))
    assert code == 0
    assert "train" in said
