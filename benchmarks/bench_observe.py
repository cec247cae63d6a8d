"""What the teacher knows of a raw input, computed against served from its cache, over gRPC.

Batches of 32 real texts, each asked once by one student (computed) and then by another (cached).
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from loads import minilm
from processes import started
from recording import Record, parser

from student_client import RemoteTeacher
from task_data import load_data, teacher_view
from task_data.config import DataConfig

ROWS = 32


def main() -> None:
    flags = parser(__doc__)
    flags.add_argument("--batches", type=int, default=12)
    arguments, model, rows = flags.parse_args(), minilm(), []
    data = load_data(DataConfig.model_validate({"name": "reuters_r8"}))
    text = teacher_view(data.test)["text"]
    serve = ("-m", "teacher_server", "serve", "--model", model, "--port", "0", "--metrics-port", "0")
    with Record("observe", arguments) as record, started(*serve) as line:
        address = line.split()[1]
        first = RemoteTeacher(address, student="first")
        second = RemoteTeacher(address, student="second")
        for outputs in (["pooled"], ["hidden.6"]):
            times: dict[str, list[float]] = {"first": [], "second": []}
            with first, second:
                for batch in range(arguments.batches):
                    texts = text[batch * ROWS : (batch + 1) * ROWS]
                    for teacher, column in ((first, times["first"]), (second, times["second"])):
                        started_at = time.perf_counter()
                        teacher.observe({"text": texts}, outputs)
                        column.append(time.perf_counter() - started_at)
            first, second = RemoteTeacher(address, student="first"), RemoteTeacher(address, student="second")
            ratios = sorted(a / b for a, b in zip(times["first"], times["second"], strict=True))
            computed, cached = (statistics.median(column) * 1e3 for column in times.values())
            ratio = statistics.median(ratios)
            rows.append({"port": outputs[0], "computed, ms": computed, "cached, ms": cached, "times faster": ratio})
            rows[-1] |= {"least": ratios[0], "most": ratios[-1]}
        record.table("observe", rows)
        for row in rows:
            record.target(f"{row['port']}, computed / cached", row["times faster"], at_least=20)


if __name__ == "__main__":
    main()
