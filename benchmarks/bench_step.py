"""A whole remote step (Forward + Backward + Step) against the same step in process; kept graph against recompute.

One student, frozen MiniLM, entry 2, exit 6, weights in float32 or `--dtype bfloat16`, batch 8x64. The sides alternate within one run, so that what
else the machine does hits them alike; the ratio of each pair is what counts.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import torch

sys.path.insert(0, str(Path(__file__).parent))

from loads import minilm, served
from recording import Record, parser

from student_client import InProcessTeacher, RemoteTeacher
from student_client.teachers.remote import Teacher
from teacher_server.local import local_teacher
from teaching_protocol.memory import keep_freed_memory

ROWS, TOKENS, WIDTH = 8, 64, 384
TARGET = 1.05
SESSION = {"message_width": WIDTH, "entry": 2, "exit": 6, "seed": 0}


def step_seconds(teacher: Teacher, message: torch.Tensor) -> float:
    started_at = time.perf_counter()
    message.grad = None
    answer = teacher(message)
    answer.square().mean().backward()
    teacher.step(lr=1e-4)
    return time.perf_counter() - started_at


def compare(name: str, ours: Teacher, base: Teacher, rounds: int, record: Record) -> dict[str, Any]:
    """Alternates the two; gives medians, the median ratio and its range, and the ratio of each pair."""
    message = torch.randn(ROWS, TOKENS, WIDTH, requires_grad=True)
    for teacher in (ours, base):
        step_seconds(teacher, message)
    pairs = []
    record.cpu.lap()
    for number in range(rounds):
        order = (ours, base) if number % 2 else (base, ours)
        seconds = {id(teacher): step_seconds(teacher, message) for teacher in order}
        pairs.append((seconds[id(ours)], seconds[id(base)]))
    ratios = sorted(a / b for a, b in pairs)
    medians = [statistics.median(column) * 1e3 for column in zip(*pairs, strict=True)]
    record.figures[f"{name}, pairs"] = ratios
    return {
        "sides": name,
        "ms": medians[0],
        "base ms": medians[1],
        "ratio": statistics.median(ratios),
        "10%": ratios[len(ratios) // 10],
        "90%": ratios[-len(ratios) // 10 - 1],
        "foreign CPU": record.cpu.lap(),
    }


def plot(rows: list[dict[str, Any]], record: Record) -> None:
    figure, axes = record.axes()
    for place, row in enumerate(rows):
        axes.boxplot(record.figures[f"{row['sides']}, pairs"], positions=[place], widths=0.5, showfliers=False)
    axes.set_xticks(range(len(rows)), [row["sides"].replace(" / ", " /\n") for row in rows], fontsize=8)
    axes.axhline(TARGET, color="C3", ls=":", label=f"target of remote steps: {TARGET}")
    axes.set(ylabel="step time over the other's, each pair", title=f"One student, {record.settings['dtype']} weights")
    axes.legend(fontsize=8)
    record.plot(figure)


def main() -> None:
    flags = parser(__doc__)
    flags.add_argument("--rounds", type=int, default=40)
    flags.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"], help="of the teacher's weights")
    flags.add_argument("--threads", type=int, default=psutil.cpu_count() or 1)
    flags.add_argument("--wait", default="PASSIVE", help="OMP_WAIT_POLICY: threads that wait sleep, or spin (ACTIVE)")
    arguments = flags.parse_args()
    if os.environ.get("OMP_WAIT_POLICY") is None:  # read when torch is loaded: start again with it
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | {"OMP_WAIT_POLICY": arguments.wait})
    keep_freed_memory()
    torch.set_num_threads(arguments.threads)
    model = minilm()
    name = "step" + "-bfloat16" * (arguments.dtype == "bfloat16")
    with (
        Record(name, arguments) as record,
        served(model, arguments.threads, dtype=arguments.dtype) as server,
    ):
        actor = local_teacher(model, dtype=arguments.dtype)
        recomputing = local_teacher(model, dtype=arguments.dtype, graph_cache_bytes=0)
        local = InProcessTeacher(actor, student="local", **SESSION)
        again = InProcessTeacher(recomputing, student="again", **SESSION)
        exact = RemoteTeacher(server.address, student="exact", compression="none", **SESSION)
        halved = RemoteTeacher(server.address, student="halved", compression="bf16", **SESSION)
        sockets = RemoteTeacher(server.address, student="sockets", shared_memory=False, **SESSION)
        with local, again, exact, halved, sockets:
            sides = {
                "remote, float32 wire / in process": (exact, local),
                "remote, bf16 wire / in process": (halved, local),
                "remote, bf16, no shared memory / in process": (sockets, local),
                "recompute / kept graph, in process": (again, local),
            }
            rows = [compare(name, *pair, arguments.rounds, record) for name, pair in sides.items()]
        record.table("steps", rows)
        for row in rows[:3]:
            record.target(row["sides"], row["ratio"], at_most=TARGET)
        plot(rows, record)


if __name__ == "__main__":
    main()
