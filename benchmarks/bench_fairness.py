"""A polite student beside a flood: its p95 step time alone, beside a polite neighbour (its fair share), and in the flood.

The polite student is in a loop. The flood is one student in another process: several connections, each with several threads
that send Forward and Backward of one session without a pause, of as many rows as told; the poisoned one's gradients are all NaN.
The situations alternate within one run. Target: p95 in the flood <= 1.5 times p95 beside the neighbour.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import torch

sys.path.insert(0, str(Path(__file__).parent))

from loads import ROWS, TOKENS, WIDTH, Loop, Server, median, minilm, quantile, served, together
from processes import started
from recording import Record, parser

from student_client.connection.transport import GrpcTransport
from teaching_protocol import verbs
from teaching_protocol.errors import TeachingError
from teaching_protocol.verbs import Call, SessionSettings

TARGET = 1.5


def flood(address: str, connections: int, threads: int, rows: int, is_poison: bool) -> None:
    """Floods until SIGTERM; each connection has a transport of its own, all have one session."""
    over = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: over.set())
    transports = [GrpcTransport(address) for _ in range(connections)]
    settings = SessionSettings(message_width=WIDTH, entry=2, exit=6)
    call = Call(time.monotonic() + 60)
    session = transports[0].enroll(verbs.EnrollRequest(f"flood-{os.getpid()}", settings), call).session
    message = torch.randn(rows, TOKENS, WIDTH)
    gradient = message * float("nan") if is_poison else message

    def send(number: int) -> None:
        transport, count = transports[number % connections], 0
        while not over.is_set():
            count += 1
            name = f"{number}-{count}"
            limit = Call(time.monotonic() + 60)
            forward = verbs.ForwardRequest(session, name, ("answer",), True, ("message",), {"message": message}, "bf16")
            backward = verbs.BackwardRequest(session, f"{name}-b", name, {"answer": gradient}, compression="bf16")
            try:
                transport.forward(forward, limit)
                transport.backward(backward, limit)
            except TeachingError:
                over.wait(0.01)

    print("flooding", flush=True)
    with ThreadPoolExecutor(connections * threads) as pool:
        running = [pool.submit(send, number) for number in range(connections * threads)]
        while not over.wait(0.5):
            pass
        transports[0].leave(verbs.LeaveRequest(session), Call(time.monotonic() + 10))  # what waits fails at once
        for each in running:
            each.result()


def measure(server: Server, arguments: argparse.Namespace) -> dict[str, list[list[float]]]:
    """Seconds of the polite student's steps by situation and round."""
    polite, neighbour = (Loop(server.address, name, arguments.rows) for name in ("polite", "neighbour"))
    together([polite, neighbour], 3.0)
    floods = {f"flood of {times * arguments.rows} rows": (times, ()) for times in arguments.times}
    floods["poisoned flood"] = 1, ("--poison",)
    situations = ["alone", "neighbour", *floods]
    found: dict[str, list[list[float]]] = {name: [] for name in situations}
    for number in range(arguments.rounds):
        for name in situations[:: -1 if number % 2 else 1]:
            if name in floods:
                times, words = floods[name]
                flags = ["--connections", arguments.connections, "--flood-threads", arguments.flood_threads, *words]
                with started(__file__, *map(str, flags), "--flood", server.address, str(times * arguments.rows)):
                    together([polite], arguments.seconds)
            else:
                together([polite] if name == "alone" else [polite, neighbour], arguments.seconds)
            found[name].append(list(polite.seconds))
    return found


def plot(rows: list[dict[str, Any]], fair: float, record: Record) -> None:
    figure, axes = record.axes()
    names = [row["situation"] for row in rows]
    for place, quantity in enumerate(("p50, ms", "p95, ms")):
        values = [row[quantity] for row in rows]
        bars = axes.bar([n + 0.4 * place - 0.2 for n in range(len(rows))], values, 0.38, label=quantity.split(",")[0])
        axes.bar_label(bars, fmt="%.0f", fontsize=8)
    axes.axhline(TARGET * fair * 1e3, color="C3", ls=":", label=f"target of p95: {TARGET} x its p95 beside a neighbour")
    axes.set_xticks(range(len(rows)), names, fontsize=8)
    axes.set(ylabel="a polite student's step, ms", title="One student and its neighbours")
    axes.legend(fontsize=8)
    record.plot(figure)


def main() -> None:
    flags = parser(__doc__)
    flags.add_argument("--seconds", type=float, default=20.0)
    flags.add_argument("--rounds", type=int, default=3)
    flags.add_argument("--rows", type=int, default=ROWS, help="rows of a polite call")
    flags.add_argument(
        "--times", type=int, nargs="+", default=[1, 2, 4], help="rows of a flood's call over a polite one's"
    )
    flags.add_argument(
        "--whole", action="store_true", help="no short batch goes first between two layers of a long one"
    )
    flags.add_argument("--connections", type=int, default=4)
    flags.add_argument("--flood-threads", type=int, default=5)
    flags.add_argument("--threads", type=int, default=psutil.cpu_count() or 1)
    flags.add_argument("--flood", nargs=2, metavar=("ADDRESS", "ROWS"), help="be the flood (used by itself)")
    flags.add_argument("--poison", action="store_true", help="flood with gradients that are NaN (used by itself)")
    arguments = flags.parse_args()
    torch.set_num_threads(1)
    if arguments.flood:
        address, rows = arguments.flood
        flood(address, arguments.connections, arguments.flood_threads, int(rows), arguments.poison)
        return
    name = "fairness-whole" if arguments.whole else "fairness"
    with (
        Record(name, arguments) as record,
        served(minilm(), arguments.threads, step_aside=not arguments.whole) as server,
    ):
        found = measure(server, arguments)
        fair = median([quantile(each, 0.95) for each in found["neighbour"]])
        rows = []
        for name, rounds in found.items():
            p95 = median([quantile(each, 0.95) for each in rounds])
            p50, steps = median([median(each) for each in rounds]), sum(map(len, rounds))
            rows.append(
                {
                    "situation": name,
                    "p50, ms": p50 * 1e3,
                    "p95, ms": p95 * 1e3,
                    "of fair share": p95 / fair,
                    "steps": steps,
                }
            )
        record.table("polite student", rows)
        for row in rows[2:]:
            record.target(f"{row['situation']}, p95 / p95 beside a neighbour", row["of fair share"], at_most=TARGET)
        plot(rows, fair, record)


if __name__ == "__main__":
    main()
