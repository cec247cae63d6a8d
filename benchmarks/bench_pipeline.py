"""Steps of several microbatches that overlap at the teacher, against the same steps with one microbatch after the other.

Two students of the same run alternate against one server process, MiniLM, one compute thread each side: blocks of steps
of the method talking with accumulation 4, with and without `training.pipeline`. Both end with the same weights, which is
checked. The ratio of each pair of blocks counts; how long the teacher computed for one block says what overlap can save:
a step cannot be shorter than the longer of the two sides. What other processes took of the machine is shown.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import psutil
import torch
from bench_ahead import opened
from processes import started

from student_client.config import load_run_config
from student_client.training.steps import Steps

STEPS = 4


def block(steps: Steps, number: int) -> tuple[float, float]:
    """Seconds of a block of steps, and those of them that the teacher computed; both sides draw the same numbers."""
    torch.manual_seed(number)
    computed = steps.teachers.account.seconds
    began = time.perf_counter()
    for step in range(number * STEPS, (number + 1) * STEPS):
        steps.take(step, lambda outcome: None)
    return time.perf_counter() - began, steps.teachers.account.seconds - computed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--accumulation", type=int, default=4)
    parser.add_argument("--size", default="small")
    parser.add_argument("--message-tokens", type=int, default=16)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        serve = ("-m", "teacher_server", "serve", "--model", "minilm", "--threads", "1", "--deterministic")
        line = stack.enter_context(started(*serve, "--port", "0", "--metrics-port", "-1"))
        fields = {
            "data.name": "reuters_r8",
            "method.names": "talking",
            "teacher.address": line.split()[1],
            "student.max_tokens": 64,
            "student.size": arguments.size,
            "method.message_tokens": arguments.message_tokens,
            "training.batch_size": 16,
            "training.accumulation": arguments.accumulation,
            "training.max_steps": STEPS * (arguments.rounds + 1),
            "training.tensorboard": False,
            "training.device": "cpu",
            "output": folder,
        }
        sides = {
            name: opened(load_run_config(None, fields | {"training.pipeline": name == "with"}), stack)
            for name in ("with", "without")
        }
        times: dict[str, list[float]] = {name: [] for name in sides}
        computed: list[float] = []
        processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
        before, used, began = psutil.cpu_times(), _used(processes), time.perf_counter()
        for number in range(arguments.rounds + 1):
            for name in sides if number % 2 else reversed(sides):
                seconds, teacher_s = block(sides[name], number)
                if number:  # the first round warms up
                    times[name].append(seconds)
                    computed += [teacher_s] if name == "without" else []
        foreign = _busy(psutil.cpu_times()) - _busy(before) - (_used(processes) - used)
        foreign /= time.perf_counter() - began
        weights = [[*side.student.parameters(), *side.method.parameters()] for side in sides.values()]
        assert all(torch.equal(one, other) for one, other in zip(*weights, strict=True)), "the two sides differ"
    ratios = sorted(b / a for a, b in zip(times["with"], times["without"], strict=True))
    ahead, plain = (statistics.median(column) * 1e3 / STEPS for column in times.values())
    teacher = statistics.median(computed) * 1e3 / STEPS
    print(
        f"a step of {arguments.accumulation} microbatches: with {ahead:.0f} ms, without {plain:.0f} ms; without / with "
        f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}, {arguments.rounds} pairs of {STEPS} steps)"
    )
    print(
        f"of the {plain:.0f} ms the teacher computes {teacher:.0f}: with perfect overlap {max(teacher, plain - teacher):.0f} ms, "
        f"without / with {plain / max(teacher, plain - teacher):.2f}; same weights; foreign CPU {foreign:.2f} cores"
    )


def _busy(times: Any) -> float:
    """CPU seconds of the whole machine."""
    return float(times.user + times.nice + times.system)


def _used(processes: list[psutil.Process]) -> float:
    """CPU seconds of these processes."""
    return float(sum(sum(each.cpu_times()[:2]) for each in processes))


if __name__ == "__main__":
    main()
