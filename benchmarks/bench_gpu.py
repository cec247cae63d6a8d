"""One GPU, a body of a 1B model's shapes with random weights: what serving, merging, pinned copies, stacking and compiling bring.

1. A remote step against the same step in process, one student (the server is a process of its own).
2. N students' steps merged into one batch against one by one, in one engine.
3. N students in loops against the served teacher: tokens a second, step times, the device's load and memory.
4. Copies: pinned against pageable.  5. Codecs: stacked against one after the other.
6. The span: eager, compiled, and (without gradients) as a CUDA graph.
Sides alternate; ratios are medians of pairs. Tables are printed, and everything is written to a JSON file. With
`--device cpu --size tiny` every line but those of CUDA alone runs without a GPU.
"""

from __future__ import annotations

import argparse
import json
import platform
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaModel

sys.path.insert(0, str(Path(__file__).parent))

from bench_edges import codecs
from bench_merge import Student, jobs_of
from loads import Loop, Server, median, quantile, together
from processes import started

from student_client import InProcessTeacher, RemoteTeacher
from student_client.teachers.remote import Teacher
from teacher_server.app import TeacherApp
from teacher_server.config import ServerConfig
from teacher_server.engine.transfers import Transfers
from teacher_server.jobs import Batch
from teacher_server.local import local_teacher
from teacher_server.models.split import FrozenTeacher, LayerSpan
from teacher_server.sessions.replies import fingerprint
from teaching_protocol import verbs
from teaching_protocol.memory import keep_freed_memory
from teaching_protocol.verbs import Call

SIZES: dict[str, dict[str, int]] = {
    "1b": {
        "hidden_size": 2048,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 8192,
    },
    "tiny": {
        "hidden_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 128,
    },
}
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
GRAPHS = {"graph_cache_bytes": 48 * 2**30, "session_graph_bytes": 24 * 2**30, "batch_tokens": 2**16}
Row = dict[str, Any]


class Bench:
    """The body, the device it is on, and what was found so far."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.device = torch.device(arguments.device)
        self.is_cuda = self.device.type == "cuda"
        self.teacher = build(arguments)
        layers = self.teacher.family.layers
        self.span = (max(1, layers // 8), layers)
        self.found: dict[str, Any] = {"machine": machine(self.device), "arguments": vars(arguments)}

    def settle(self) -> None:
        if self.is_cuda:
            torch.cuda.synchronize(self.device)

    def note(self, part: str, rows: list[Row]) -> None:
        """Prints a table and keeps it; the file is written anew after each part."""
        self.found[part] = rows
        print(f"\n{part}", flush=True)
        if rows:
            print("  ".join(f"{name:>14}" for name in rows[0]))
        for row in rows:
            cells = (f"{value:14.3f}" if isinstance(value, float) else f"{value!s:>14}" for value in row.values())
            print("  ".join(cells), flush=True)
        self.arguments.out.parent.mkdir(parents=True, exist_ok=True)
        self.arguments.out.write_text(json.dumps(self.found, indent=1, default=str) + "\n")

    def alternate(self, sides: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
        """Milliseconds of each side, in rounds in which each has its turn; two rounds warm up."""
        times: dict[str, list[float]] = {name: [] for name in sides}
        for number in range(rounds + 2):
            for name in list(sides)[:: 1 if number % 2 else -1]:
                self.settle()
                begun = time.perf_counter()
                sides[name]()
                self.settle()
                if number > 1:
                    times[name].append((time.perf_counter() - begun) * 1e3)
        return times


def build(arguments: argparse.Namespace) -> FrozenTeacher:
    config = LlamaConfig(vocab_size=512, max_position_embeddings=2048, **SIZES[arguments.size])
    torch.manual_seed(0)
    with torch.device(arguments.device):
        model = LlamaModel(config)
    return FrozenTeacher(model.to(DTYPES[arguments.dtype]), f"random-{arguments.size}")


def machine(device: torch.device) -> dict[str, Any]:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    return {"device": name or platform.machine(), "torch": torch.__version__, "python": platform.python_version()}


def ratio(times: Mapping[str, list[float]], ours: str, base: str) -> float:
    return statistics.median(a / b for a, b in zip(times[ours], times[base], strict=True))


def step(teacher: Teacher, message: torch.Tensor) -> None:
    message.grad = None
    teacher(message).square().mean().backward()
    teacher.step(lr=1e-4)


def one_student(bench: Bench, address: str) -> None:
    rows = []
    entry, exit = bench.span
    session: dict[str, Any] = {"message_width": bench.arguments.width, "entry": entry, "exit": exit, "seed": 0}
    with InProcessTeacher(local_teacher(bench.teacher, **GRAPHS), student="local", **session) as local:
        for tokens in (16, 64, 256):
            message = torch.randn(8, tokens, bench.arguments.width, requires_grad=True)
            for compression in ("none", "bf16"):
                with RemoteTeacher(address, student="remote", compression=compression, **session) as remote:
                    sides = {"remote": partial(step, remote, message), "local": partial(step, local, message)}
                    times = bench.alternate(sides, bench.arguments.rounds)
                medians = {f"{name}_ms": median(each) for name, each in times.items()}
                times_as = ratio(times, "remote", "local")
                rows.append({"tokens": f"8x{tokens}", "wire": compression, **medians, "remote/local": times_as})
    bench.note("1 a step of one student", rows)


def merging(bench: Bench) -> None:
    rows = []
    actor = local_teacher(bench.teacher, **GRAPHS)
    engine, width = actor._engine, bench.arguments.width
    for tokens in (16, 64):
        for count in (1, 2, 4, 8, 16):
            students = [Student(actor, f"{count}-{place}", 8, tokens, width, bench.span) for place in range(count)]

            def merged(students: list[Student] = students) -> None:
                for jobs in jobs_of(students):
                    engine.run(Batch(tuple(jobs)))
                    assert all(job.future.exception(0) is None for job in jobs)

            def apart(students: list[Student] = students) -> None:
                for jobs in jobs_of(students):
                    for job in jobs:
                        engine.run(Batch((job,)))

            if bench.is_cuda:
                torch.cuda.reset_peak_memory_stats(bench.device)
            times = bench.alternate({"merged": merged, "one_by_one": apart}, bench.arguments.rounds)
            done = count * 8 * tokens * 1e3
            rate = {f"{name}_tokens_s": done / median(each) for name, each in times.items()}
            peak = torch.cuda.max_memory_allocated(bench.device) / 2**30 if bench.is_cuda else float("nan")
            times_as = ratio(times, "one_by_one", "merged")
            rows.append({"students": count, "tokens": f"8x{tokens}", **rate, "times": times_as, "peak_GiB": peak})
            for student in students:
                actor.leave(verbs.LeaveRequest(student.ref), Call())
    bench.note("2 merged against one by one", rows)


@contextmanager
def load_of(bench: Bench) -> Iterator[list[tuple[float, float]]]:
    """The device's load in percent and its memory in MiB while the block runs, five times a second; none on a CPU."""
    samples: list[tuple[float, float]] = []
    if not bench.is_cuda:
        yield samples
        return
    query = ["nvidia-smi", "--query-gpu=utilization.gpu,memory.used", "--format=csv,noheader,nounits", "-lms", "200"]
    with subprocess.Popen(query, stdout=subprocess.PIPE, text=True) as process:

        def gather() -> None:
            assert process.stdout is not None
            for line in process.stdout:
                load, memory = line.split(",")
                samples.append((float(load), float(memory)))

        reader = threading.Thread(target=gather)
        reader.start()
        yield samples
        process.terminate()
        reader.join()


def served_students(bench: Bench, server: Server) -> None:
    rows = []
    for count in (1, 2, 4, 8, 16):
        width, span = bench.arguments.width, bench.span
        loops = [Loop(server.address, f"loop-{each}", 8, 64, width, span=span) for each in range(count)]
        together(loops, 1.0)
        names = ("teacher_batch_students_sum", "teacher_batch_students_count")
        before = [server.metric(name, method="Forward") for name in names]
        with load_of(bench) as samples:
            begun = time.perf_counter()
            seconds = together(loops, bench.arguments.seconds)
            passed = time.perf_counter() - begun
        jobs, batches = (server.metric(name, method="Forward") - was for name, was in zip(names, before, strict=True))
        load, memory = zip(*samples, strict=True) if samples else ((float("nan"),), (float("nan"),))
        rows.append(
            {
                "students": count,
                "tokens_s": len(seconds) * 8 * 64 / passed,
                "p50_ms": median(seconds) * 1e3,
                "p95_ms": quantile(seconds, 0.95) * 1e3,
                "merged_of_N": jobs / max(1.0, batches),
                "load_percent": float(statistics.mean(load)),
                "memory_MiB": float(max(memory)),
            }
        )
        for loop in loops:
            loop.teacher.leave()
    bench.note("3 students in loops against the served teacher, 8x64 tokens each", rows)


def copies(bench: Bench) -> None:
    """There and back, one tensor; and what the engine spends on a request's checksum, beside it."""
    rows = []
    transfers = Transfers(bench.device)
    for size in (2**16, 2**20, 2**22, 2**24, 2**26):
        host = torch.randn(size // 4)
        there = host.to(bench.device)
        request = verbs.ForwardRequest(inputs={"message": host})
        sides: dict[str, Callable[[], object]] = {
            "pinned_in": lambda host=host: transfers.place(host),
            "pageable_in": lambda host=host: host.to(bench.device),
            "pinned_out": lambda there=there: dict(transfers.fetch({"": there})),
            "pageable_out": lambda there=there: there.cpu(),
            "checksum": lambda request=request: fingerprint(request),
        }
        times = bench.alternate(sides, max(5, bench.arguments.rounds))
        rate = {f"{name}_GB_s": size / median(each) / 1e6 for name, each in times.items()}
        rows.append({"KiB": size // 1024, **rate})
    bench.note("4 copies", rows)


def compiling(bench: Bench) -> None:
    """Forward and backward of the span, then forward alone: eager, compiled, and as a CUDA graph of eager's kernels."""
    made = FrozenTeacher(bench.teacher.model, "compiled")
    begun = time.perf_counter()
    made.compile()
    first_s = time.perf_counter() - begun
    span, width, rows = LayerSpan(*bench.span), bench.teacher.family.widths[0], []
    for batch, tokens in ((8, 16), (8, 64), (64, 64)):
        states = torch.randn(batch, tokens, width, device=bench.device, requires_grad=True)

        def both(teacher: FrozenTeacher, states: torch.Tensor = states) -> None:
            torch.autograd.grad(teacher.upper(states, None, span).float().sum(), states)

        def forward(teacher: FrozenTeacher, states: torch.Tensor = states) -> None:
            with torch.no_grad():
                teacher.upper(states, None, span)

        for name, run in (("forward+backward", both), ("forward", forward)):
            sides: dict[str, Callable[[], object]] = {
                "eager": lambda run=run: run(bench.teacher),
                "compiled": lambda run=run: run(made),
            }
            if bench.is_cuda and name == "forward":
                sides["graph"] = captured(lambda run=run: run(bench.teacher))
            begun = time.perf_counter()
            run(made)
            bench.settle()
            warm_s = time.perf_counter() - begun
            times = bench.alternate(sides, bench.arguments.rounds)
            medians = {f"{side}_ms": median(each) for side, each in times.items()}
            graph = {"graph_ms": medians.pop("graph_ms", float("nan"))}
            gain = {"eager/compiled": ratio(times, "eager", "compiled"), "compile_s": first_s + warm_s}
            rows.append({"what": name, "tokens": f"{batch}x{tokens}", **medians, **graph, **gain})
            first_s = 0.0
    bench.note("6 the span compiled", rows)


def captured(run: Callable[[], object]) -> Callable[[], object]:
    """The same kernels, replayed at one launch."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def serve(arguments: argparse.Namespace) -> None:
    """Serves the body until it is ended."""
    config = ServerConfig(model="random", port=0, metrics_port=0, dtype=arguments.dtype, **GRAPHS)
    with TeacherApp(config, build(arguments)) as app:
        print(f"serving 127.0.0.1:{app.port} metrics 127.0.0.1:{app.metrics_port}", flush=True)
        signal.pause()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--size", default="1b", choices=SIZES)
    parser.add_argument("--dtype", default="bfloat16", choices=DTYPES)
    parser.add_argument("--width", type=int, default=256, help="of the messages")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=6.0, help="of each number of students in loops")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "gpu.json")
    parser.add_argument("--serve", action="store_true", help="only serve the body; what the benchmark starts by itself")
    arguments = parser.parse_args()
    keep_freed_memory()
    if arguments.serve:
        serve(arguments)
        return
    bench = Bench(arguments)
    print(*bench.found["machine"].values(), arguments.size, arguments.dtype, sep=", ", flush=True)
    body = ("--device", arguments.device, "--size", arguments.size, "--dtype", arguments.dtype)
    with started(__file__, "--serve", *body) as line:
        words = line.split()
        one_student(bench, words[1])
        served_students(bench, Server(words[1], words[3]))
    merging(bench)
    copies(bench)
    bench.note("5 codecs", codecs(bench.arguments.rounds, arguments.device, bench.teacher.family.widths[0]))
    compiling(bench)
    print(f"\nwritten: {arguments.out}")


if __name__ == "__main__":
    main()
