"""A process that does one job after another: JSON lines in, JSON lines out; knows no suite and no other job.

It lives on from job to job, since importing the product takes seconds. It ends when its standard input is closed, so
it does not outlive whoever started it. What a job says goes to a log of its own.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TextIO

import torch

from student_client.compare.records import SELECTED
from student_client.compare.scores import score_teacher
from student_client.compare.sizes import weigh_models
from student_client.compare.weights import randomise
from student_client.config import RunConfig
from student_client.processes import last_line, process
from student_client.reporting.progress import Progress
from student_client.selection.episodes import train_selector
from student_client.training.runs import train
from task_data.config import DataConfig
from teaching_protocol.errors import ServiceError, TeachingError
from teaching_protocol.memory import keep_freed_memory

__all__ = ["JOBS", "main"]


def _train(config: Mapping[str, Any], keep_student: bool) -> None:
    """Trains a student anew; checkpoints go when it is done, they would fill the disk."""
    run = RunConfig.model_validate(config)
    if train(run, overwrite=True, progress=Progress("+".join(run.method.names))) is None:
        raise SystemExit(128 + signal.SIGTERM)
    shutil.rmtree(run.output / "checkpoints", ignore_errors=True)
    if not keep_student:
        shutil.rmtree(run.output / "student", ignore_errors=True)


def _select(config: Mapping[str, Any], episodes: int) -> None:
    """Trains a selector anew."""
    run, began = RunConfig.model_validate(config), time.monotonic()
    done = train_selector(run, episodes, overwrite=True, progress=Progress("selector"))
    if done.signal:
        raise SystemExit(128 + done.signal)
    facts = {"steps": episodes * (run.training.max_steps or 0), "wall_s": round(time.monotonic() - began, 3)}
    (run.output / SELECTED).write_text(json.dumps(facts) + "\n", encoding="utf-8")


def _command(command: list[str], said: str) -> None:
    """Runs a command to its end; what it says goes to the file `said`."""
    log = Path(said)
    with process(command, log) as started:
        if started.wait():
            raise ServiceError(f"`{' '.join(command[2:4])}` ended with code {started.returncode}: {last_line(log)}")


def _randomise(source: str | None, student: Mapping[str, Any] | None, seed: int, output: str) -> None:
    """Writes a teacher that knows nothing."""
    randomise(None if source is None else Path(source), student, seed, Path(output))


def _score(address: str, data: Mapping[str, Any], facts: Any, output: str) -> None:
    """Scores a served teacher; `facts` say in the file which one it was."""
    scores = score_teacher(address, DataConfig.model_validate(data))
    Path(output).write_text(json.dumps({**scores, "facts": facts}) + "\n", encoding="utf-8")


JOBS: dict[str, Callable[..., None]] = {
    "train": _train,
    "select": _select,
    "command": _command,
    "randomise": _randomise,
    "score": _score,
    "weigh": weigh_models,
}
"""What a worker can do, by the `kind` of a job; the job's other fields are the arguments, `log` its log file."""


def main() -> None:
    """Does the jobs of the standard input; each is answered by {"error": null or a sentence, "again": bool}."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to whoever started this process, which then ends it
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    keep_freed_memory()
    torch.set_num_threads(1)
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        job = json.loads(line)
        answers.write(json.dumps(_do(job.pop("kind"), Path(job.pop("log")), job)) + "\n")
        answers.flush()


def _do(kind: str, log: Path, arguments: Mapping[str, Any]) -> dict[str, Any]:
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as file:
        _say_to(file)
        try:
            JOBS[kind](**arguments)
        except TeachingError as error:
            said = "; ".join([str(error), *getattr(error, "__notes__", [])])
            return {"error": f"{type(error).__name__}: {said}", "again": isinstance(error, ServiceError)}
        except Exception as error:  # whatever it is, it is this job's alone
            traceback.print_exc()
            return {"error": f"{type(error).__name__}: {error} (all of it in {log})", "again": False}
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
    return {"error": None, "again": False}


def _say_to(file: TextIO) -> None:
    """Sends both standard outputs to a file, also what libraries write past Python."""
    for number in (1, 2):
        os.dup2(file.fileno(), number)


if __name__ == "__main__":
    main()
