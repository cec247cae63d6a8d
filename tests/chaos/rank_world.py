"""The ranks of one student as processes that start fast and may be killed, one by one."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import torch
from safetensors.torch import load_file

from student_client.config import RunConfig
from student_client.reporting.progress import Progress
from student_client.training.runs import open_run
from teaching_protocol.errors import TeachingError
from tests.chaos.world import _forks, _hash, _weights_of, free_port

__all__ = ["ended_with", "rank_environment", "rank_log", "rank_processes"]


def rank_environment(rank: int, count: int, port: int) -> dict[str, str]:
    """What torchrun tells each process."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def rank_log(config: RunConfig, rank: int) -> Path:
    return config.output.parent / f"{config.output.name}.rank{rank}.log"


def _train(config: str, resume: bool, environment: Mapping[str, str]) -> None:
    torch.set_num_threads(1)
    os.environ |= environment
    found, rank = RunConfig.model_validate_json(config), int(environment["RANK"])
    with rank_log(found, rank).open("a") as log:
        try:
            with open_run(found, resume=resume, progress=Progress("run", file=log)) as trainer:
                if trainer.run() is None:
                    sys.exit(1)
                if rank == 0:
                    told = {"weights": _weights_of(trainer), "session": _hash(trainer.teachers.export_states()[0])}
                    (found.output / "ended.json").write_text(json.dumps(told))
                else:
                    (found.output.parent / f"{found.output.name}.rank{rank}.json").write_text(
                        json.dumps(_weights_of(trainer))
                    )
        except TeachingError as error:
            log.write(f"{type(error).__name__}: {error}\n")
            sys.exit(1)


@contextmanager
def rank_processes(config: RunConfig, count: int = 2, resume: bool = False) -> Iterator[list[ForkServerProcess]]:
    """Trains a run in so many processes; what each says goes to OUTPUT.rank<n>.log."""
    port = free_port()
    with ExitStack() as stack:
        processes = []
        for rank in range(count):
            words = (config.model_dump_json(), resume, rank_environment(rank, count, port))
            process = _forks.Process(target=_train, args=words, daemon=True)
            process.start()
            stack.callback(process.join, 20)
            stack.callback(process.kill)
            processes.append(process)
        yield processes


def ended_with(config: RunConfig) -> dict[str, dict[str, torch.Tensor]]:
    """The tensors of a run's last checkpoint: the student's, its codec's, the teacher's side of the session."""
    last = max((config.output / "checkpoints").glob("step-*"))
    files = [last / f"{name}.safetensors" for name in ("student", "method", "session-0")]
    return {file.stem: load_file(file) for file in files if file.exists()}
