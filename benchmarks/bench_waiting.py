"""Waiting for students known to be active, on against off: students a batch of those at work, and the steps it buys.

N students in loops (each thinks, asks for Forward and Backward of 8x16, steps) against two servers on the same cores, one
with `--no-linger`; only one is loaded at a time, in alternating rounds. Medians over rounds. The engine has one core if nothing
else is said, and so one batch at a time for all students, as on a GPU; with several, calls of this size run side by side.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))

from loads import ROWS, Loop, Server, median, minilm, served, together
from recording import Record, parser

METHODS = ("Forward", "Backward")


def sums(server: Server, name: str) -> tuple[float, float]:
    return tuple(sum(server.metric(f"{name}_{part}", method=method) for method in METHODS) for part in ("sum", "count"))


def measure(server: Server, loops: list[Loop], seconds: float) -> tuple[float, float, float, float]:
    """Steps a second, students a batch, students at work, share of the time that was waited."""
    names = ("teacher_batch_students", "teacher_batch_active_students", "teacher_batch_linger_seconds")
    before = {name: sums(server, name) for name in names}
    steps = len(together(loops, seconds))
    found = []
    for name in names:
        (total, count), (old_total, old_count) = sums(server, name), before[name]
        found.append((total - old_total) / (seconds if name.endswith("seconds") else max(1, count - old_count)))
    return steps / seconds, *found


def compare(on: Server, off: Server, count: int, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows for so many students: with waiting, and without."""
    loops = {
        server: [
            Loop(
                server.address,
                f"{count}-{i}",
                rows=arguments.rows,
                tokens=arguments.tokens,
                think_s=arguments.think_ms / 1e3,
            )
            for i in range(count)
        ]
        for server in (on, off)
    }
    found: dict[Server, list[tuple[float, ...]]] = {on: [], off: []}
    for number in range(arguments.rounds + 1):
        for server in (on, off) if number % 2 else (off, on):
            result = measure(server, loops[server], arguments.seconds if number else 2.0)
            found[server] += [result] if number else []  # the first round warms up and learns
    for each in [*loops[on], *loops[off]]:
        each.teacher.leave()
    ratios = sorted(a[0] / b[0] for a, b in zip(found[on], found[off], strict=True))
    rows = []
    for name, server in (("waits", on), ("greedy", off)):
        steps, merged, active, waited = (median(column) for column in zip(*found[server], strict=True))
        rows.append(
            {
                "students": count,
                "server": name,
                "a batch": merged,
                "at work": active,
                "tokens/s": steps * arguments.rows * arguments.tokens,
                "waited": waited,
                "over greedy": median(ratios) if server is on else 1.0,
                "least": ratios[0] if server is on else 1.0,
                "most": ratios[-1] if server is on else 1.0,
            }
        )
    return rows


def plot(rows: list[dict[str, Any]], record: Record) -> None:
    figure, (left, right) = record.axes(2)
    for name, style in (("waits", "o-"), ("greedy", "s--")):
        own = [row for row in rows if row["server"] == name]
        counts = [row["students"] for row in own]
        left.plot(counts, [row["a batch"] for row in own], style, label=name)
        right.plot(counts, [row["tokens/s"] for row in own], style, label=name)
    left.plot(counts, counts, ":", color="grey", label="all of them")
    left.set(xlabel="students in loops", ylabel="students a batch")
    right.set(xlabel="students in loops", ylabel="tokens/s", ylim=(0, None))
    left.legend(fontsize=8)
    right.legend(fontsize=8)
    record.plot(figure)


def main() -> None:
    flags = parser(__doc__)
    flags.add_argument("--students", type=int, nargs="+", default=[2, 4, 8])
    flags.add_argument("--seconds", type=float, default=10.0)
    flags.add_argument("--rounds", type=int, default=4)
    flags.add_argument("--think-ms", type=float, default=2.0)
    flags.add_argument("--rows", type=int, default=ROWS)
    flags.add_argument(
        "--tokens", type=int, default=16, help="of a row: short calls, for which a batch pays on a processor"
    )
    flags.add_argument("--threads", type=int, default=1, help="of the engine")
    arguments = flags.parse_args()
    torch.set_num_threads(1)
    model = minilm()
    with (
        Record("waiting", arguments) as record,
        served(model, arguments.threads) as on,
        served(model, arguments.threads, linger=False) as off,
    ):
        rows = [row for count in arguments.students for row in compare(on, off, count, arguments)]
        record.table("waiting", rows)
        for row in rows:
            if row["server"] == "waits":
                record.target(f"{row['students']} students, steps waiting / greedy", row["over greedy"], at_least=1.0)
        plot(rows, record)


if __name__ == "__main__":
    main()
