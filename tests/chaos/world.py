"""Teachers and students as processes that start fast and die by kill -9, and what is left of a run when it ends.

Processes are forked from a server that has everything imported, so that twenty deaths take seconds.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import random
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import grpc
import torch
from grpc_health.v1 import health_pb2, health_pb2_grpc

from student_client.config import RunConfig
from student_client.reporting.progress import Progress
from student_client.training.runs import open_run
from teacher_server.app import TeacherApp
from teacher_server.cli import main as command
from teacher_server.config import ServerConfig
from teaching_protocol.errors import TeachingError
from tests.hosts import inside
from tests.integration.gate import poll
from tests.unit.student_client.run_setup import run_config

__all__ = [
    "Ended",
    "TeacherProcess",
    "assert_same",
    "chaos_config",
    "doze",
    "ended",
    "free_port",
    "health",
    "log_of",
    "student_process",
    "unbroken",
    "wait_for_step",
]

_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(["tests.chaos.world"])

LIMIT_S = 240.0


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def chaos_config(folder: Path, output: str, address: str, steps: int, **fields: Any) -> RunConfig:
    """A talking run with dropout whose every step is written down; K = 5."""
    chosen = {
        "training__max_steps": steps,
        "training__rewind_steps": 5,
        "training__checkpoint_every": 20,
        "training__evaluate_every": 25,
        "training__log_every": 1,
        "training__deterministic": True,
        "teacher__address": address,
        "teacher__patience_s": 60,
        "teacher__deadline_s": 20,
    }
    return run_config(folder, output, "talking", **chosen | fields)


def _serve(settings: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    with TeacherApp(ServerConfig(**settings)) as app:
        app.wait()


def _command(words: list[str]) -> None:
    torch.set_num_threads(1)
    sys.argv = ["teacher-server", *words]
    command()


def _train(config: str, resume: bool) -> None:
    torch.set_num_threads(1)
    found = RunConfig.model_validate_json(config)
    with (found.output.parent / f"{found.output.name}.log").open("a") as log:
        try:
            told = _trained(found, resume, Progress("run", file=log))
        except TeachingError as error:
            log.write(f"{type(error).__name__}: {error}\n")
            sys.exit(1)
    if told is None:
        sys.exit(1)
    (found.output / "ended.json").write_text(json.dumps(told))


def _trained(config: RunConfig, resume: bool, progress: Progress) -> dict[str, Any] | None:
    """Hashes of what a run ends with; None for one that was told to end before."""
    with open_run(config, resume=resume, progress=progress) as trainer:
        if trainer.run() is None:
            return None
        return {"weights": _weights_of(trainer), "session": _hash(trainer.teachers.export_states()[0])}


def _weights_of(trainer: Any) -> dict[str, str]:
    return {
        group: _hash(b"".join(value.cpu().numpy().tobytes() for value in module.state_dict().values()))
        for group, module in (("student", trainer.student), ("method", trainer.method))
    }


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@dataclass
class TeacherProcess:
    """A deterministic teacher at one port, which can be killed and started again; as the command itself, it takes signals.

    Its process is in a network namespace of this name, if any.
    """

    model: Path
    port: int = field(default_factory=free_port)
    settings: Mapping[str, Any] = field(default_factory=dict)
    is_command: bool = False
    process: ForkServerProcess | None = None
    namespace: str = ""

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> TeacherProcess:
        known = {"model": str(self.model), "entry": 1, "exit": 3, "port": self.port, "metrics_port": -1}
        known |= {"device": "cpu", "deterministic": True, "threads": 1, "lease_s": 10.0}
        known |= dict(self.settings)
        if self.is_command:
            path = Path(f"{self.model}-{self.port}.yaml")
            path.write_text(json.dumps(known))  # which is YAML
            self.process = _forks.Process(target=_command, args=(["serve", "--config", str(path)],), daemon=True)
        else:
            self.process = _process(self.namespace, _serve, known)
        self.process.start()
        return self

    def wait_until_it_serves(self) -> None:
        """Returns once the health service says SERVING; asked from its namespace, by a process that was never elsewhere.

        A thread of ours that enters the namespace does not do: gRPC connects in threads that it may have begun before.
        """
        if not self.namespace:
            _wait_until_it_serves(self.port)
            return
        asks = _process(self.namespace, _wait_until_it_serves, self.port)
        asks.start()
        asks.join(LIMIT_S)
        assert asks.exitcode == 0, "the teacher serves: nobody says so"

    def terminate(self) -> None:
        """SIGTERM."""
        assert self.process is not None
        self.process.terminate()

    def exit_code(self) -> int | None:
        """Waits for the end."""
        assert self.process is not None
        self.process.join(LIMIT_S)
        return self.process.exitcode

    def kill(self) -> None:
        """kill -9."""
        if self.process is not None:
            self.process.kill()
            self.process.join(20)

    def __enter__(self) -> TeacherProcess:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.kill()


def _wait_until_it_serves(port: int) -> None:
    poll(lambda: health(port) == 1, "the teacher serves", LIMIT_S)


def _process(namespace: str, work: Callable[..., None], *arguments: Any) -> ForkServerProcess:
    words = (inside, (namespace, work, *arguments)) if namespace else (work, arguments)
    return _forks.Process(target=words[0], args=words[1], daemon=True)


@contextmanager
def student_process(config: RunConfig, resume: bool = False, namespace: str = "") -> Iterator[ForkServerProcess]:
    """Trains a run in a process of its own, in a network namespace of this name, if any; what it says goes to OUTPUT.log."""
    process = _process(namespace, _train, config.model_dump_json(), resume)
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join(20)


def steps_of(config: RunConfig) -> list[int]:
    """The steps written down so far, in their order."""
    path = config.output / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [int(json.loads(line)["step"]) for line in lines if line.endswith("}")]


def wait_for_step(config: RunConfig, process: ForkServerProcess, more_than: int) -> int:
    """The newest step written down, once it is more than that."""

    def newest() -> int:
        assert process.exitcode is None, f"the student ended at {steps_of(config)[-1:]}: {log_of(config)[-2000:]}"
        found = max(steps_of(config), default=0)
        return found if found > more_than else 0

    return int(poll(newest, f"step {more_than + 1}", LIMIT_S))


def log_of(config: RunConfig) -> str:
    """What the run has said."""
    path = config.output.parent / f"{config.output.name}.log"
    return path.read_text() if path.exists() else ""


@dataclass(frozen=True)
class Ended:
    """What is left of a run that came to its end."""

    weights: dict[str, str]
    session: str
    steps: list[int]
    losses: list[float]
    result: dict[str, Any]


def ended(config: RunConfig, process: ForkServerProcess) -> Ended:
    """Waits for the end of a run."""
    process.join(LIMIT_S)
    assert process.exitcode == 0, log_of(config)[-3000:]
    told = json.loads((config.output / "ended.json").read_text())
    lines = [json.loads(line) for line in (config.output / "metrics.jsonl").read_text().splitlines()]
    result = json.loads((config.output / "result.json").read_text())
    return Ended(told["weights"], told["session"], [x["step"] for x in lines], [x["loss"] for x in lines], result)


def unbroken(model: Path, folder: Path, steps: int, **fields: Any) -> Ended:
    """The same run with a teacher that lives."""
    with TeacherProcess(model) as teacher:
        config = chaos_config(folder, "unbroken", teacher.address, steps, **fields)
        with student_process(config) as student:
            return ended(config, student)


def assert_same(broken: Ended, whole: Ended, steps: int) -> None:
    """To the bit: weights, the teacher's codec with its optimizer, every loss, every step once, the scores."""
    assert broken.steps == list(range(1, steps + 1))
    assert broken.losses == whole.losses
    assert broken.weights == whole.weights
    assert broken.session == whole.session
    for name in ("validation", "test", "test_loss", "best_step", "steps"):
        assert broken.result[name] == whole.result[name], name


def health(port: int) -> int | None:
    """What the health service says; None where nobody answers."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        try:
            return int(health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5).status)
        except grpc.RpcError:
            return None


def doze(rng: random.Random, seconds: float) -> None:
    """Chaos needs a moment that nobody chose."""
    time.sleep(rng.uniform(0.0, seconds))
