"""Growth to 256 sessions: memory, step latency and lost leases, all sessions with heartbeats and up to 64 of them at work.

A small random model, so that the server's own work is what grows. A lost session ends the run with an error.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))

from loads import Loop, Server, median, quantile, served, small_model, together
from recording import Record, parser

LEASE_S = 6.0


def grown(server: Server, loops: list[Loop], active: int, seconds: float, record: Record) -> dict[str, Any]:
    """Figures with these sessions; every one must be alive after so long, several leases of an idle one."""
    record.cpu.lap()
    steps = together(loops[:active], max(seconds, 1.5 * LEASE_S))
    lost, alive = server.metric("teacher_session_ends_total", cause="lease"), server.metric("teacher_sessions")
    if lost or alive != len(loops):
        raise SystemExit(f"of {len(loops)} sessions {alive:.0f} are alive, {lost:.0f} lost their lease")
    return {
        "sessions": len(loops),
        "at work": min(len(loops), active),
        "step p50, ms": median(steps) * 1e3,
        "step p95, ms": quantile(steps, 0.95) * 1e3,
        "steps/s": len(steps) / max(seconds, 1.5 * LEASE_S),
        "server MiB": server.metric("teacher_device_memory_bytes") / 2**20,
        "lost": int(lost),
        "foreign CPU": record.cpu.lap(),
    }


def main() -> None:
    flags = parser(__doc__)
    flags.add_argument("--sessions", type=int, nargs="+", default=[1, 4, 16, 32, 64, 128, 192, 256])
    flags.add_argument("--active", type=int, default=64)
    flags.add_argument("--seconds", type=float, default=20.0)
    flags.add_argument("--threads", type=int, default=1)
    arguments = flags.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    with Record("sessions", arguments) as record, tempfile.TemporaryDirectory() as folder:
        with served(small_model(folder), arguments.threads, lease_s=LEASE_S) as server:
            loops: list[Loop] = []
            for count in sorted(arguments.sessions):
                while len(loops) < count:
                    name = f"student-{len(loops)}"
                    loops.append(Loop(server.address, name, 2, 8, 16, think_s=0.05, span=(0, 2)))
                rows.append(grown(server, loops, arguments.active, arguments.seconds, record))
            for loop in loops:
                loop.teacher.leave()
        record.table("growth", rows)
        record.target("sessions lost", float(sum(row["lost"] for row in rows)), at_most=0)
        plot(rows, record)


def plot(rows: list[dict[str, Any]], record: Record) -> None:
    figure, (left, right) = record.axes(2)
    counts = [row["sessions"] for row in rows]
    left.plot(counts, [row["step p50, ms"] for row in rows], "o-", label="p50")
    left.plot(counts, [row["step p95, ms"] for row in rows], "o-", label="p95")
    left.axvline(
        record.settings["active"], color="grey", ls=":", label=f"{record.settings['active']} at work from here on"
    )
    left.set(xlabel="sessions", ylabel="step, ms", ylim=(0, None), title="Latency")
    left.legend(fontsize=8)
    right.plot(counts, [row["server MiB"] for row in rows], "o-")
    right.set(xlabel="sessions", ylabel="server memory, MiB", ylim=(0, None), title="Memory (none lost)")
    record.plot(figure)


if __name__ == "__main__":
    main()
