"""The engine's speed in a process whose only team of OpenMP threads is its own, and in one where the main thread has a team, too.

Forward + Backward + Step of one student in a thread of its own, frozen MiniLM, entry 2, exit 6. Each side is a process of its
own, since a team stays; the sides take turns.
"""

# ruff: noqa: E402
from __future__ import annotations

from teaching_protocol.memory import keep_freed_memory

keep_freed_memory()  # as teacher-server does, before anything starts a thread

import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import psutil
import torch
from bench_merge import Student, round_seconds
from loads import minilm
from recording import Record, parser

from teacher_server.local import local_teacher

CORES = psutil.cpu_count() or 1
ROWS, TOKENS, WIDTH, STEPS = 8, 64, 384, 20


def tokens_per_second(has_other_team: bool) -> float:
    torch.set_num_threads(CORES if has_other_team else 1)
    actor = local_teacher(minilm())
    torch.randn(512, 512) @ torch.randn(512, 512)  # the main thread's team starts, where it may have one

    def steps() -> list[float]:
        torch.set_num_threads(CORES)
        students = [Student(actor, "one", ROWS, TOKENS, WIDTH)]
        return [sum(round_seconds(students, True)) for _ in range(STEPS)]

    with ThreadPoolExecutor(1) as engine:
        return ROWS * TOKENS / statistics.median(engine.submit(steps).result()[2:])


def measured(side: str) -> float:
    command = [sys.executable, __file__, "--side", side]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def main() -> None:
    flags = parser(__doc__)
    flags.add_argument("--rounds", type=int, default=4)
    flags.add_argument("--side", choices=["one", "two"], help="measures this side alone, in this process")
    arguments = flags.parse_args()
    if arguments.side:
        print(tokens_per_second(arguments.side == "two"))
        return
    with Record("threads", arguments) as record:
        rates: dict[str, list[float]] = {"one": [], "two": []}
        for number in range(arguments.rounds):
            for side in sorted(rates, reverse=bool(number % 2)):
                rates[side].append(measured(side))
        record.figures["rates"] = rates
        record.table(
            "teams",
            [{"teams": side, "tokens/s": statistics.median(column)} for side, column in rates.items()],
        )
        ratio = statistics.median(one / two for one, two in zip(rates["one"], rates["two"], strict=True))
        record.target("one team / two", ratio, at_least=1.0)


if __name__ == "__main__":
    main()
