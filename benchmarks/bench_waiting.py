"""Waiting for students known to be active, on against off: students a batch of those at work, and the steps it buys.

N students in loops (each thinks, asks for Forward and Backward of 8x64, steps) against two servers on the same cores, one
with `--no-linger`; only one is loaded at a time, in alternating rounds. Medians over rounds.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import psutil
import torch

sys.path.insert(0, str(Path(__file__).parent))

from loads import ROWS, TOKENS, Loop, Server, median, minilm, served, together

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--students", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--think-ms", type=float, default=2.0)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--threads", type=int, default=psutil.cpu_count() or 1)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = minilm()
    with served(model, arguments.threads) as on, served(model, arguments.threads, linger=False) as off:
        for count in arguments.students:
            loops = {
                server: [
                    Loop(server.address, f"{count}-{i}", rows=arguments.rows, think_s=arguments.think_ms / 1e3)
                    for i in range(count)
                ]
                for server in (on, off)
            }
            found: dict[Server, list[tuple[float, ...]]] = {on: [], off: []}
            psutil.cpu_percent()
            for number in range(arguments.rounds + 1):
                for server in (on, off) if number % 2 else (off, on):
                    result = measure(server, loops[server], arguments.seconds if number else 2.0)
                    found[server] += [result] if number else []  # the first round warms up and learns
            busy = psutil.cpu_percent() / 100 * (psutil.cpu_count() or 1)
            for name, server in (("waits", on), ("greedy", off)):
                steps, merged, active, waited = (median(column) for column in zip(*found[server], strict=True))
                print(
                    f"{count:3d} students, {name:<6} {merged:5.2f} a batch of {active:5.2f} at work, "
                    f"{steps * arguments.rows * TOKENS:7.0f} tokens/s, {waited:6.1%} of the time waited"
                )
            ratios = [a[0] / b[0] for a, b in zip(found[on], found[off], strict=True)]
            print(
                f"{count:3d} students, waits / greedy = {median(ratios):.3f} in steps "
                f"({min(ratios):.3f} to {max(ratios):.3f}; {arguments.rounds} rounds, {busy:.1f} cores busy)",
                flush=True,
            )
            for each in [*loops[on], *loops[off]]:
                each.teacher.leave()


if __name__ == "__main__":
    main()
