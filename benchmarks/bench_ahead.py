"""Training steps that observe the next batch while the current one runs, against steps that ask when they need it.

The server's knowledge cache is off, so that every batch is computed, as in a first epoch. One compute thread each side.
Blocks of ten steps of the method fitnets alternate; the ratio of each pair of blocks counts.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import torch
from processes import started
from recording import Record, parser

from student_client.config import RunConfig, load_run_config
from student_client.methods import Context, build_methods
from student_client.reporting.progress import Progress
from student_client.students import build_student
from student_client.training.acceleration import build_accelerator
from student_client.training.ahead import Ahead
from student_client.training.runs import connected
from student_client.training.steps import Steps
from task_data import load_data

STEPS = 10


def opened(config: RunConfig, stack: ExitStack) -> Steps:
    """A student with its teacher, ready to step."""
    data = load_data(config.data)
    student = build_student(config.student, data)
    teachers = stack.enter_context(connected(config, data, (), Progress("bench", quiet=True)))
    methods = build_methods(Context(config.method, student, teachers.cards, 0))
    return Steps(config, data.train, student, methods, teachers, build_accelerator(config.training, config.output))


def block(steps: Steps, done: int) -> float:
    """Seconds of ten steps, with nothing in flight before and after."""
    began = time.perf_counter()
    for step in range(done, done + STEPS):
        steps.take(step, lambda outcome: None)
    seconds = time.perf_counter() - began
    steps.batches.drain()
    return seconds


def main() -> None:
    flags = parser(__doc__)
    flags.add_argument("--rounds", type=int, default=12)
    arguments = flags.parse_args()
    with Record("ahead", arguments) as record:
        compare(arguments.rounds, record)


def compare(rounds: int, record: Record) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        server = Path(folder) / "server.yaml"
        server.write_text("knowledge_cache_bytes: 0\nmax_tokens: 32\n")
        serve = ("-m", "teacher_server", "serve", "--model", "minilm", "--config", str(server))
        line = stack.enter_context(started(*serve, "--port", "0", "--metrics-port", "-1", "--threads", "1"))
        fields = {
            "data.name": "reuters_r8",
            "method.names": "fitnets",
            "teacher.address": line.split()[1],
            "student.max_tokens": 64,
            "training.max_steps": STEPS * (rounds + 1),
            "training.tensorboard": False,
            "output": folder,
        }
        sides = {name: opened(load_run_config(None, fields), stack) for name in ("ahead", "on demand")}
        plain = sides["on demand"]
        plain.batches.close()
        plain.batches = Ahead(plain.stream, plain.teachers, {})
        times: dict[str, list[float]] = {name: [] for name in sides}
        for number in range(rounds + 1):
            for name in sides if number % 2 else reversed(sides):
                seconds = block(sides[name], number * STEPS)
                if number:  # the first round warms up
                    times[name].append(seconds)
        for steps in sides.values():
            steps.batches.close()
    ratios = sorted(b / a for a, b in zip(times["ahead"], times["on demand"], strict=True))
    ahead, demand = (statistics.median(column) * 1e3 / STEPS for column in times.values())
    ratio = {"on demand / ahead": statistics.median(ratios), "least": ratios[0], "most": ratios[-1]}
    record.table("steps", [{"ahead, ms": ahead, "on demand, ms": demand} | ratio])
    record.target("on demand / ahead", ratio["on demand / ahead"], at_least=1.0)


if __name__ == "__main__":
    main()
