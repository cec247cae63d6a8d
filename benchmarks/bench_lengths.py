"""Training on batches of texts of similar length, against batches as they are drawn: real sentences, one student.

Two students of the same run alternate, MiniLM their teacher in this process (the server's own engine, no network), one
compute thread: blocks of steps of the method talking on sentences of reviews with and without `training.group_by_length`.
What counts is useful tokens a second, those of the student's texts that are no padding. Both see the same rows an epoch.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from contextlib import ExitStack

import psutil
import torch

from student_client.config import RunConfig, load_run_config
from student_client.methods import Context, build_methods
from student_client.reporting.progress import Progress
from student_client.students import build_student
from student_client.training.acceleration import build_accelerator
from student_client.training.runs import connected
from student_client.training.steps import Steps
from student_client.training.stream import Place, Stream
from task_data import load_data
from teacher_server.actor import TeacherActor
from teacher_server.local import local_teacher

STEPS = 5


def opened(config: RunConfig, teacher: TeacherActor, stack: ExitStack) -> Steps:
    """A student with its teacher, ready to step."""
    data = load_data(config.data)
    student = build_student(config.student, data)
    teachers = stack.enter_context(connected(config, data, [teacher], Progress("bench", quiet=True)))
    methods = build_methods(Context(config.method, student, teachers.cards, 0))
    return Steps(config, data.train, student, methods, teachers, build_accelerator(config.training, config.output))


class Side:
    """A student with its teacher, and the texts it is given, drawn once more to be counted."""

    def __init__(self, config: RunConfig, teacher: TeacherActor, stack: ExitStack) -> None:
        self.steps = opened(config, teacher, stack)
        stream = self.steps.stream
        self._counted = Stream(stream.split, self.steps.student, config.training, (), torch.device("cpu"))
        masks = self._masks(stream.epoch_batches)
        self.useful_share = sum(int(mask.sum()) for mask in masks) / sum(mask.numel() for mask in masks)
        self._counted.go_to(Place())

    def block(self, number: int) -> float:
        """Useful tokens a second of a block of steps."""
        began = time.perf_counter()
        for step in range(number * STEPS, (number + 1) * STEPS):
            self.steps.take(step, lambda outcome: None)
        seconds = time.perf_counter() - began
        return sum(int(mask.sum()) for mask in self._masks(STEPS)) / seconds

    def _masks(self, count: int) -> list[torch.Tensor]:
        return [self._counted.next().inputs["attention_mask"] for _ in range(count)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--data", default="uci_sentiment")
    parser.add_argument("--method", default="talking")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    fields = {
        "data.name": arguments.data,
        "method.names": arguments.method,
        "student.max_tokens": 64,
        "training.max_steps": STEPS * (arguments.rounds + 1),
        "training.tensorboard": False,
        "training.device": "cpu",
    }
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        teacher = local_teacher("minilm", max_tokens=64)
        sides = {}
        for name in ("with", "without"):
            chosen = {"training.group_by_length": name == "with", "output": folder}
            sides[name] = Side(load_run_config(None, fields | chosen), teacher, stack)
        rates: dict[str, list[float]] = {name: [] for name in sides}
        psutil.cpu_percent()
        for number in range(arguments.rounds + 1):
            for name in sides if number % 2 else reversed(sides):
                rate = sides[name].block(number)
                if number:  # the first round warms up
                    rates[name].append(rate)
        busy = psutil.cpu_percent() / 100 * (psutil.cpu_count() or 1)
    ratios = sorted(a / b for a, b in zip(rates["with"], rates["without"], strict=True))
    for name, side in sides.items():
        rate = statistics.median(rates[name])
        print(f"{name:>8}: {rate:7.0f} useful tokens/s; {side.useful_share:.2f} of the tokens of an epoch are useful")
    print(
        f"with / without {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}, {arguments.rounds} pairs of "
        f"{STEPS} steps); {busy:.2f} cores were busy, 1 by this process"
    )


if __name__ == "__main__":
    main()
