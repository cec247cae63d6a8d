"""A polite student beside a flood: its p95 step time alone, beside a polite neighbour (its fair share), and in the flood.

The polite student is in a loop. The flood is one student in another process: several connections, each with several threads
that send Forward and Backward of one session without a pause, of as many rows as told. The situations
alternate within one run. Target: p95 in the flood <= 1.5 times p95 beside the neighbour.
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

import psutil
import torch

sys.path.insert(0, str(Path(__file__).parent))

from loads import ROWS, TOKENS, WIDTH, Loop, median, minilm, quantile, served, together
from processes import started

from student_client.transport import GrpcTransport
from teaching_protocol import verbs
from teaching_protocol.errors import TeachingError
from teaching_protocol.verbs import Call, SessionSettings


def flood(address: str, connections: int, threads: int, rows: int) -> None:
    """Floods until SIGTERM; each connection has a transport of its own, all have one session."""
    over = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: over.set())
    transports = [GrpcTransport(address) for _ in range(connections)]
    settings = SessionSettings(message_width=WIDTH, entry=2, exit=6)
    call = Call(time.monotonic() + 60)
    session = transports[0].enroll(verbs.EnrollRequest(f"flood-{os.getpid()}", settings), call).session
    message = torch.randn(rows, TOKENS, WIDTH)

    def send(number: int) -> None:
        transport, count = transports[number % connections], 0
        while not over.is_set():
            count += 1
            name = f"{number}-{count}"
            limit = Call(time.monotonic() + 60)
            forward = verbs.ForwardRequest(session, name, ("answer",), True, ("message",), {"message": message}, "bf16")
            backward = verbs.BackwardRequest(session, f"{name}-b", name, {"answer": message}, compression="bf16")
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=ROWS, help="rows of a polite call")
    parser.add_argument(
        "--times", type=int, nargs="+", default=[1, 2, 4], help="rows of a flood's call over a polite one's"
    )
    parser.add_argument("--connections", type=int, default=4)
    parser.add_argument("--flood-threads", type=int, default=5)
    parser.add_argument("--threads", type=int, default=psutil.cpu_count() or 1)
    parser.add_argument("--flood", nargs=2, metavar=("ADDRESS", "ROWS"), help="be the flood (used by itself)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.flood:
        flood(arguments.flood[0], arguments.connections, arguments.flood_threads, int(arguments.flood[1]))
        return
    with served(minilm(), arguments.threads) as server:
        polite, neighbour = (Loop(server.address, name, arguments.rows) for name in ("polite", "neighbour"))
        together([polite, neighbour], 3.0)
        names = ["alone", "neighbour", *(f"flood of {each * arguments.rows} rows" for each in arguments.times)]
        found: dict[str, list[list[float]]] = {name: [] for name in names}
        psutil.cpu_percent()
        for number in range(arguments.rounds):
            for name in names if number % 2 == 0 else names[::-1]:
                if not name.startswith("flood"):
                    loops = [polite] if name == "alone" else [polite, neighbour]
                    together(loops, arguments.seconds)
                else:
                    flags = [
                        "--connections",
                        str(arguments.connections),
                        "--flood-threads",
                        str(arguments.flood_threads),
                    ]
                    words = [__file__, *flags, "--flood", server.address, name.split()[2]]
                    with started(*words):
                        together([polite], arguments.seconds)
                found[name].append(list(polite.seconds))
        busy = psutil.cpu_percent() / 100 * (psutil.cpu_count() or 1)
        fair = median([quantile(each, 0.95) for each in found["neighbour"]])
        for name, rounds in found.items():
            p95 = median([quantile(each, 0.95) for each in rounds])
            p50, steps = median([median(each) for each in rounds]), sum(map(len, rounds))
            print(
                f"{name:<20} step p50 {p50 * 1e3:8.1f} ms, p95 {p95 * 1e3:8.1f} ms = {p95 / fair:.2f} of the fair share "
                f"({steps} steps, {busy:.1f} cores busy)"
            )


if __name__ == "__main__":
    main()
