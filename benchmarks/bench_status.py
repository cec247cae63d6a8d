"""What the status page costs a server with many sessions: milliseconds of a look at all of them, and of a scrape of the metrics.

The server is real and idle; its sessions have enrolled and are kept by their leases.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import torch
from loads import median, minilm
from prometheus_client import generate_latest
from recording import Record, parser

from teacher_server.app import TeacherApp
from teacher_server.config import ServerConfig
from teacher_server.web.readings import Reader
from teacher_server.web.status import limits_of
from teaching_protocol import verbs
from teaching_protocol.verbs import Call, SessionSettings


def milliseconds(work: Callable[[], object], rounds: int) -> float:
    took = []
    for _ in range(rounds):
        began = time.perf_counter()
        work()
        took.append(1e3 * (time.perf_counter() - began))
    return median(took)


def main() -> None:
    flags = parser(__doc__)
    flags.add_argument("--sessions", type=int, nargs="+", default=[1, 16, 64, 256])
    flags.add_argument("--rounds", type=int, default=50)
    arguments = flags.parse_args()
    config = ServerConfig(model=minilm(), port=0, metrics_port=0, lease_s=600.0, status_interval_s=600.0)
    with Record("status", arguments) as record, TeacherApp(config) as app:
        reader = Reader(app.actor, app.metrics, lambda: "serving", lambda: limits_of(config, torch.device("cpu")))
        rows, there = [], 0
        for count in sorted(arguments.sessions):
            for number in range(there, count):
                settings = SessionSettings(message_width=64, entry=2, exit=6)
                app.actor.enroll(verbs.EnrollRequest(f"student-{number}", settings), Call(time.monotonic() + 60))
            there = count
            rows.append(
                {
                    "sessions": count,
                    "a look, ms": milliseconds(reader.read, arguments.rounds),
                    "a scrape, ms": milliseconds(lambda: generate_latest(app.metrics.registry), arguments.rounds),
                }
            )
        record.table("samples", rows)


if __name__ == "__main__":
    main()
