"""The model against real runs: a real server and real student processes on this machine, as `bench_students.py` has them."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loads import Server, median, minilm, quantile, served
from workers import Worker, Workers, window

from scale.cases import Outcome, Scenario
from scale.costs import Costs
from scale.world import simulate

WORKER = str(Path(__file__).parent.parent / "student_worker.py")
SUMS = ("teacher_batch_students_sum", "teacher_batch_students_count")


def scenario(students: int, rows: int, tokens: int, cores: int) -> Scenario:
    """What the real run is, said to the model: all processes on one host, students without a model of their own."""
    here: dict[str, Any] = {"way": "shared", "one_host": True, "gbps": math.inf, "teacher_cores": cores}
    return Scenario(students, rows=rows, tokens=tokens, local="none", steps=20, **here)


def validate(
    counts: Sequence[int], sizes: Sequence[tuple[int, int]], costs: Costs, seconds: float, rounds: int
) -> list[dict[str, Any]]:
    """A row for each number of students and size of message; takes about (seconds + 1) for each of them and round."""
    cores, rows = os.cpu_count() or 1, []
    with served(minilm(), cores) as server, Workers() as workers:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # of the students: idle threads sleep
        students = workers.add(
            [(WORKER, f"student-{place}", "--remote", server.address) for place in range(max(counts))]
        )
        window(students, 0.5, threads=1, rows=2, tokens=16, work="step")
        for size in sizes:
            for count in counts:
                real = [_real(server, students[:count], size, seconds) for _ in range(rounds)]
                model = simulate(scenario(count, *size, cores), costs)
                rows.append(_row(count, size, real, model))
    return rows


def _real(server: Server, students: Sequence[Worker], size: tuple[int, int], seconds: float) -> dict[str, float]:
    before = [_of_model(server, name) for name in SUMS]
    rows, tokens = size
    answers = window(students, seconds, threads=1, rows=rows, tokens=tokens, work="step")
    calls, batches = (_of_model(server, name) - old for name, old in zip(SUMS, before, strict=True))
    took = [each for answer in answers for each in answer["seconds"]]
    return {
        "tokens_s": sum(answer["steps"] for answer in answers) * rows * tokens / seconds,
        "p50": quantile(took, 0.5),
        "p95": quantile(took, 0.95),
        "a batch": calls / max(1.0, batches),
    }


def _of_model(server: Server, name: str) -> float:
    """A metric of the calls that run the model."""
    return sum(server.metric(name, method=method) for method in ("Forward", "Backward"))


def _row(count: int, size: tuple[int, int], real: Sequence[dict[str, float]], model: Outcome) -> dict[str, Any]:
    found = {name: median([each[name] for each in real]) for name in real[0]}
    rates = [each["tokens_s"] for each in real]
    return {
        "N": count,
        "rows x tokens": f"{size[0]}x{size[1]}",
        "measured, tokens/s": found["tokens_s"],
        "from": min(rates),
        "to": max(rates),
        "model, tokens/s": model.tokens_s,
        "error": model.tokens_s / found["tokens_s"] - 1,
        "measured step, ms": found["p50"] * 1e3,
        "model step, ms": model.step_s * 1e3,
        "measured p95": found["p95"] * 1e3,
        "model p95": model.slow_step_s * 1e3,
        "measured a batch": found["a batch"],
        "model a batch": model.students_a_batch,
    }
