"""Teachers and students for tests of what is seen of them: real servers whose model can be made slow, stuck or broken."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from teacher_server.app import TeacherApp
from teacher_server.config import ServerConfig
from teacher_server.models.split import FrozenTeacher
from teaching_protocol.errors import TeachingError
from tests.integration.processes import ROOT
from tests.unit.student_client.run_setup import run_config
from tests.unit.teacher_server.tiny_models import tiny_model, tiny_tokenizer

__all__ = ["LONGEST_S", "School", "again_and_again", "student_process"]


LONGEST_S = 1200.0  # of what is to last until a test has seen it, on whatever machine


class School:
    """A server in this process, on a model of its own.

    Attributes:
        slow_s: what each pass of the model takes longer.
        broken: whether it fails with a bug instead.
        door: while it is shut, whatever enters the model waits.
    """

    def __init__(self, **settings: Any) -> None:
        self.slow_s, self.broken = 0.0, False
        self.door = threading.Event()
        self.door.set()
        model = FrozenTeacher(tiny_model("bert"), "tiny-bert", tokenizer=tiny_tokenizer())
        model.family.blocks[-1].register_forward_pre_hook(self._enter)
        self.app = TeacherApp(
            ServerConfig(**{"model": "tiny", "port": 0, "metrics_port": 0, "threads": 1, "handoff_s": 0.0} | settings),
            model,
        )

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.app.port}"

    def _enter(self, *_: Any) -> None:
        time.sleep(self.slow_s)
        assert self.door.wait(LONGEST_S)
        if self.broken:
            raise RuntimeError("a bug")


@contextmanager
def again_and_again(call: Callable[[], object], pause_s: float = 0.02) -> Iterator[None]:
    """Calls in a thread of its own for as long as the `with` lasts; what the teacher refuses is called again."""
    ending = threading.Event()

    def run() -> None:
        while not ending.wait(pause_s):
            with suppress(TeachingError):
                call()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        ending.set()
        thread.join()


@contextmanager
def student_process(folder: Path, teacher: str) -> Iterator[int]:
    """The command `student-client train` in a process of its own, without an end; gives its metrics port."""
    config = run_config(
        folder,
        method="talking",
        teacher__address=teacher,
        training__max_steps=100_000,
        training__log_every=1,
        training__metrics_port=0,
        training__threads=1,
    )
    path = folder / "student.yaml"
    path.write_text(config.model_dump_json())
    command = [sys.executable, "-m", "student_client", "train", "--config", str(path)]
    with ExitStack() as stack:
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        stack.callback(process.wait, 20)
        stack.callback(process.kill)
        assert process.stdout is not None
        stack.callback(process.stdout.close)
        said = next((line for line in process.stdout if "metrics at http://" in line), "")
        assert said, "the student ended before it served its metrics"
        threading.Thread(target=_read_on, args=(process.stdout,), daemon=True).start()
        yield int(said.rpartition(":")[2].partition("/")[0])


def _read_on(lines: Any) -> None:
    with suppress(ValueError):  # it was closed
        for _ in lines:
            pass
