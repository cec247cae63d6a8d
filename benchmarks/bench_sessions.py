"""Growth to 256 sessions: memory, step latency and lost leases, all sessions with heartbeats and up to 64 of them at work.

A small random model, so that the server's own work is what grows. Prints a table and writes a plot (PNG).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import matplotlib
import psutil
import torch

sys.path.insert(0, str(Path(__file__).parent))

from loads import Loop, median, quantile, served, small_model, together

matplotlib.use("Agg")
from matplotlib import pyplot

LEASE_S = 6.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sessions", type=int, nargs="+", default=[1, 16, 64, 128, 256])
    parser.add_argument("--active", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--plot", type=Path, default=Path(__file__).parent / "sessions.png")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[tuple[int, float, float, float, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        options = {"lease_s": LEASE_S}
        with served(small_model(folder), arguments.threads, **options) as server:
            loops: list[Loop] = []
            for count in sorted(arguments.sessions):
                while len(loops) < count:
                    name = f"student-{len(loops)}"
                    loops.append(Loop(server.address, name, 2, 8, 16, think_s=0.05, span=(0, 2)))
                psutil.cpu_percent()
                steps = together(loops[: arguments.active], max(arguments.seconds, 1.5 * LEASE_S))
                busy = psutil.cpu_percent() / 100 * (psutil.cpu_count() or 1)
                memory = server.metric("teacher_device_memory_bytes") / 2**20
                lost = server.metric("teacher_session_ends_total", cause="lease")
                live = server.metric("teacher_sessions")
                rows.append((count, median(steps) * 1e3, quantile(steps, 0.95) * 1e3, memory, len(steps)))
                print(
                    f"{count:4d} sessions, {min(count, arguments.active):3d} at work: step p50 {rows[-1][1]:7.1f} ms, "
                    f"p95 {rows[-1][2]:7.1f} ms, {len(steps)} steps, {memory:6.0f} MiB, {live:.0f} alive, {lost:.0f} lost "
                    f"({busy:.1f} cores busy)",
                    flush=True,
                )
            for loop in loops:
                loop.teacher.leave()
    plot(rows, arguments.plot)
    print(f"plot: {arguments.plot}")


def plot(rows: list[tuple[int, float, float, float, float]], path: Path) -> None:
    counts, p50, p95, memory, _ = zip(*rows, strict=True)
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.5))
    left.plot(counts, p50, "o-", label="p50")
    left.plot(counts, p95, "o-", label="p95")
    left.set(xlabel="sessions (at most 64 at work)", ylabel="step, ms", ylim=(0, None))
    left.legend()
    right.plot(counts, memory, "o-")
    right.set(xlabel="sessions", ylabel="server memory, MiB", ylim=(0, None))
    figure.tight_layout()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
