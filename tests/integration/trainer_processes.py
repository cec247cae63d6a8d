"""`DistillationTrainer` in processes of a launcher: the script each process runs, and how a test starts them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch

from tests.chaos.rank_world import rank_environment
from tests.chaos.world import _forks, free_port
from tests.integration.processes import ROOT

__all__ = ["METHOD", "forked", "launched", "spec", "trained"]

METHOD = {"names": "talking", "message_width": 16, "consistency": "cross", "message_dropout": 0, "answer_dropout": 0}
"""What several processes do as one does: no dropout, losses that are means over rows."""


def spec(student: Path, texts: Path, address: str, output: Path, **fields: Any) -> dict[str, Any]:
    """A run as `trained` takes it; `fields` are those of `loops.trainer_of`, and `resume`."""
    given = {
        "method": METHOD,
        "teacher": {"address": address, "compression": "none"},
        "save_strategy": "steps",
        "save_steps": 4,
    }
    return given | {"student": str(student), "texts": str(texts), "output": str(output)} | fields


def trained(given: Mapping[str, Any]) -> Any:
    """Trains as a spec says, and leaves the student in `end/` of the output folder; gives the trainer."""
    from tests.integration.loops import trainer_of

    fields = dict(given)
    student, texts, output = (Path(fields.pop(name)) for name in ("student", "texts", "output"))
    resume = fields.pop("resume", False)
    trainer = trainer_of(student, texts, fields.pop("teacher"), output, **fields)
    trainer.train(resume_from_checkpoint=resume)
    trainer.save_model(str(output / "end"))
    return trainer


def launched(
    given: Mapping[str, Any], count: int = 2, words: Sequence[str] = (), python: str = sys.executable
) -> subprocess.CompletedProcess[str]:
    """The same in processes of torchrun.

    Args:
        given: the spec.
        count: of processes.
        words: for torchrun.
        python: the interpreter.
    """
    output = Path(given["output"])
    output.mkdir(parents=True, exist_ok=True)
    path = output / "spec.json"
    path.write_text(json.dumps(given))
    torchrun = [
        python,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        str(count),
        "--master-port",
        str(free_port()),
    ]
    return subprocess.run(
        [*torchrun, *words, "-m", "tests.integration.trainer_processes", str(path)],
        cwd=ROOT, capture_output=True, text=True, timeout=250, check=False,
    )  # fmt: skip


def forked(given: Mapping[str, Any], count: int = 2) -> list[int | None]:
    """The same in processes that start fast, with the environment that torchrun gives; their exit codes, and OUTPUT.log."""
    port = free_port()
    ranks = [
        _forks.Process(target=_rank, args=(json.dumps(given), rank_environment(rank, count, port)), daemon=True)
        for rank in range(count)
    ]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(200)
        rank.kill()
        rank.join()
    return [rank.exitcode for rank in ranks]


def _rank(given: str, environment: Mapping[str, str]) -> None:
    torch.set_num_threads(1)
    os.environ |= environment
    found = json.loads(given)
    with Path(f"{found['output']}.log").open("a") as log, redirect_stdout(log), redirect_stderr(log):
        trained(found)


if __name__ == "__main__":
    trained(json.loads(Path(sys.argv[1]).read_text()))
