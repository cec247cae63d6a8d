"""The questions that docs/scale.md answers, each a sweep of scenarios, a table and a plot."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from recording import Record

from scale.cases import Outcome, Scenario
from scale.costs import AssumedGpu, Costs
from scale.world import simulate

GPU_SETTINGS: dict[str, Any] = {
    "graph_cache_bytes": 40 * 2**30,
    "session_graph_bytes": 24 * 2**30,
    "permits": 2048,
    "max_sessions": 2048,
}
STUDENTS = (1, 4, 16, 64, 256, 1000)
GBPS = (1.0, 2.5, 10.0, 25.0, 40.0, 100.0)
RESOURCES = ("teacher's device", "teacher's Python", "teacher's wire", "students' processors", "students' wire")
WIDE = 1024
Row = dict[str, Any]


def run_sweep(name: str, cpu: Costs, gpu: AssumedGpu, record: Record) -> None:
    """One of `SWEEPS`."""
    assumed = gpu.costs(cpu)
    record.figures |= {"measured": cpu.source, "assumed": assumed.source}
    print(f"teachers on a processor: {cpu.source}\nteachers on a GPU: {assumed.source}", flush=True)
    find, plot = SWEEPS[name]
    rows = find(cpu, assumed)
    record.table(name, rows)
    record.plot(plot(rows, record))


def of_size(students: int, replicas: int = 1, **fields: Any) -> Scenario:
    """A scenario whose steps are fewer the more students there are: what is measured is the mean of all of them."""
    steps = max(3, min(20, 1500 // students))
    return Scenario(students, replicas, **{"warm_steps": max(2, steps // 4), "steps": steps, **fields})


def row_of(outcome: Outcome, **said: Any) -> Row:
    busy = {name: outcome.busy[name] for name in RESOURCES if name in outcome.busy}
    return {
        **said,
        "steps/s": outcome.steps_s,
        "tokens/s": outcome.tokens_s,
        "step, s": outcome.step_s,
        "p95, s": outcome.slow_step_s,
        "waited, s": outcome.wait_s,
        "a batch": outcome.students_a_batch,
        "recomputed": outcome.recomputed,
        "limit": outcome.bottleneck,
        **busy,
    }


def students_and_teachers(_: Costs, gpu: Costs) -> list[Row]:
    """1 to 1,000 students on 1 to 64 teachers."""
    return [
        row_of(
            simulate(of_size(students, teachers, width=WIDE, settings=GPU_SETTINGS), gpu),
            students=students,
            teachers=teachers,
        )
        for teachers in (1, 4, 16, 64)
        for students in STUDENTS
    ]


def wires(_: Costs, gpu: Costs) -> list[Row]:
    """128 students on 8 teachers: what the network's rate and the compression do to each other."""
    fields: dict[str, Any] = {"settings": GPU_SETTINGS, "warm_steps": 3, "steps": 6}
    return [
        row_of(
            simulate(of_size(128, 8, width=width, gbps=gbps, way=way, **fields), gpu), width=width, wire=way, GbE=gbps
        )
        for width in (WIDE, 4 * WIDE)
        for way in ("none", "bf16", "int8")
        for gbps in GBPS
    ]


def saturation(cpu: Costs, gpu: Costs) -> list[Row]:
    """One teacher: an assumed GPU, and two cores of a host of its own, as they were measured."""
    sides: dict[str, tuple[Costs, dict[str, Any]]] = {
        "assumed GPU": (gpu, {"width": WIDE, "settings": GPU_SETTINGS}),
        "measured processor": (cpu, {"teacher_cores": cpu.engine.threads}),
    }
    return [
        row_of(simulate(of_size(students, **fields), costs), device=device, students=students)
        for device, (costs, fields) in sides.items()
        for students in (1, 2, 4, 8, 16, 32, 64)
    ]


def batching(cpu: Costs, gpu: Costs) -> list[Row]:
    """The same students with batches, with batches that wait for nobody, and one by one."""
    ways = {"merged": {}, "merged, no waiting": {"linger": False}, "one by one": {"deterministic": True}}
    sides: dict[str, tuple[Costs, dict[str, Any], float]] = {
        "assumed GPU": (gpu, GPU_SETTINGS, 16),
        "measured processor": (cpu, {}, cpu.engine.threads),
    }
    return [
        row_of(
            simulate(of_size(students, tokens=tokens, teacher_cores=cores, settings={**settings, **each}), costs),
            device=device,
            tokens=f"8x{tokens}",
            how=how,
            students=students,
        )
        for device, (costs, settings, cores) in sides.items()
        for tokens in (16, 64)
        for how, each in ways.items()
        for students in (1, 4, 16, 64)
    ]


def show(outcome: Outcome) -> None:
    """One outcome, whole."""
    for name, value in dataclasses.asdict(outcome).items():
        if isinstance(value, dict):
            print(f"{name}: " + ", ".join(f"{key} {share:.1%}" for key, share in value.items()))
        else:
            print(f"{name}: {value:.4g}")
    print(f"limit: {outcome.bottleneck}")


def _lines(axes: Any, rows: Sequence[Row], by: str, x: str, y: str, **style: Any) -> None:
    """One line for each value of `by`."""
    for value in dict.fromkeys(row[by] for row in rows):
        own = [row for row in rows if row[by] == value]
        axes.plot([row[x] for row in own], [row[y] for row in own], "o-", ms=4, label=str(value), **style)


def plot_students(rows: Sequence[Row], record: Record) -> Any:
    figure, (left, right) = record.axes(2)
    named = [{**row, "teachers": f"{row['teachers']} teacher{'s' * (row['teachers'] > 1)}"} for row in rows]
    _lines(left, named, "teachers", "students", "steps/s")
    _lines(right, named, "teachers", "students", "step, s")
    left.set(ylabel="steps/s, all students", title="Throughput")
    right.set(ylabel="seconds", title="A step, median")
    for axes in (left, right):
        axes.set(xscale="log", yscale="log", xlabel="students, 8x64 tokens each")
        axes.legend(fontsize=8)
    figure.suptitle("Simulated, assumed GPU, 10 GbE, bf16 messages of width 1024", fontsize=10)
    return figure


def plot_wire(rows: Sequence[Row], record: Record) -> Any:
    widths = list(dict.fromkeys(row["width"] for row in rows))
    figure, plots = record.axes(len(widths))
    for axes, width in zip(plots, widths, strict=True):
        _lines(axes, [row for row in rows if row["width"] == width], "wire", "GbE", "steps/s")
        axes.set(xscale="log", ylim=(0, None), xlabel="GbE of every host", ylabel="steps/s, all students")
        axes.set(title=f"Messages of width {width}")
        axes.set_xticks(GBPS, [f"{each:g}" for each in GBPS])
        axes.minorticks_off()
        axes.legend(fontsize=8)
    figure.suptitle("Simulated, assumed GPU, 128 students on 8 teachers", fontsize=10)
    return figure


def plot_saturation(rows: Sequence[Row], record: Record) -> Any:
    devices = list(dict.fromkeys(row["device"] for row in rows))
    figure, plots = record.axes(len(devices))
    for axes, device in zip(plots, devices, strict=True):
        own = [row for row in rows if row["device"] == device]
        for name in RESOURCES:
            axes.plot([row["students"] for row in own], [row[name] for row in own], "o-", ms=4, label=name)
        axes.set(xscale="log", ylim=(0, 1.05), xlabel="students", ylabel="share of the time at work")
        axes.set(title=f"One teacher, {device}, 10 GbE")
        axes.legend(fontsize=8)
    return figure


def plot_batching(rows: Sequence[Row], record: Record) -> Any:
    cases = list(dict.fromkeys((row["device"], row["tokens"]) for row in rows))
    figure, plots = record.axes(len(cases))
    for axes, case in zip(plots, cases, strict=True):
        _lines(
            axes, [row for row in rows if (row["device"], row["tokens"]) == case], "how", "students", "tokens/s", lw=1.5
        )
        axes.set(
            xscale="log", ylim=(0, None), xlabel="students", ylabel="tokens/s", title=f"{case[0]}, {case[1]} tokens"
        )
        axes.legend(fontsize=8)
    return figure


def plot_validation(rows: Sequence[Row], record: Record) -> Any:
    sizes = list(dict.fromkeys(row["rows x tokens"] for row in rows))
    figure, plots = record.axes(len(sizes))
    for axes, size in zip(plots if len(sizes) > 1 else [plots], sizes, strict=True):
        own = [row for row in rows if row["rows x tokens"] == size]
        counts, real = [row["N"] for row in own], [row["measured, tokens/s"] for row in own]
        low = [row["measured, tokens/s"] - row["from"] for row in own]
        high = [row["to"] - row["measured, tokens/s"] for row in own]
        axes.errorbar(counts, real, [low, high], fmt="o-", lw=2, capsize=3, label="measured, with the range of rounds")
        axes.plot(counts, [row["model, tokens/s"] for row in own], "s--", label="model")
        axes.set(xscale="log", ylim=(0, None), xlabel="students", ylabel="tokens/s", title=f"{size} tokens a student")
        axes.set_xticks(counts, [str(count) for count in counts])
        axes.minorticks_off()
        axes.legend(fontsize=8)
    return figure


SWEEPS: dict[str, tuple[Callable[[Costs, Costs], list[Row]], Callable[[Sequence[Row], Record], Any]]] = {
    "students": (students_and_teachers, plot_students),
    "wire": (wires, plot_wire),
    "saturation": (saturation, plot_saturation),
    "batching": (batching, plot_batching),
}
