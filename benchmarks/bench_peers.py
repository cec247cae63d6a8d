"""The same work by peers: hivemind's remote expert, gRPC with pickled tensors, and top-k logits over HTTP, against ours.

1. Forward + Backward through the same frozen span (MiniLM, layers 2 to 6), float32 weights and wire: ours with and without shared
   memory, and with the Step; hivemind; a gRPC + pickle teacher. Ours also runs a codec of each student on both sides of the span;
   the pickle teacher is there with and without such codecs, hivemind without. Each is held against the same work in process.
2. The 64 largest logits of new token ids (SmolLM2-135M): ours, and JSON over HTTP; ours again with ids that were asked before.

Servers and clients are processes, the peers' in a virtual environment of their own (`make bench-peers` makes it); every server
has the same threads, every client one. All are started first, idle ones sleep, and the sides take turns within each round.
The ratio of each pair is the median over rounds.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import psutil
import torch
from loads import ROWS, TOKENS, WIDTH, median, minilm, served
from processes import process
from recording import Record, parser
from safetensors.torch import save_file
from torch import nn
from workers import Worker, Workers, window

from student_client import RemoteTeacher
from teacher_server.models.packaged import packaged_folder
from teacher_server.sessions.codecs import CodecShape, TeacherCodec

HERE = Path(__file__).parent
STUDENT = str(HERE / "student_worker.py")
CORES = psutil.cpu_count() or 1
FLOAT32 = ("--compression", "none")
Key = tuple[str, int]


class Sides:
    """What takes turns: rows a second by (name, clients), each with the in-process side that does the same work."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.calls: dict[Key, Callable[[float], float]] = {}
        self.base: dict[Key, Key] = {}
        self.rates: dict[Key, list[float]] = {}

    def add(self, name: str, workers: Sequence[Worker], base: Key | None = None, **order: Any) -> None:
        """A side with as many clients as were asked for, and no more than there are workers."""
        for count in self.arguments.clients:
            if count <= len(workers):
                key = name, count
                self.calls[key] = self._call(workers[:count], {"threads": 1} | order)
                self.base[key] = base or key
                self.rates[key] = []

    def _call(self, workers: Sequence[Worker], order: dict[str, Any]) -> Callable[[float], float]:
        rows = order["rows"]

        def call(seconds: float) -> float:
            if order.get("work") == "observe again":
                window(workers, 0.0, **order)  # asks once, so that the window finds it in the teacher's cache
            return sum(each["steps"] for each in window(workers, seconds, **order)) * rows / seconds

        return call

    def measure(self) -> None:
        for number in range(self.arguments.rounds + 1):
            print(f"round {number} of {self.arguments.rounds}", flush=True)
            for key in list(self.calls)[:: -1 if number % 2 else 1]:
                rate = self.calls[key](self.arguments.seconds if number else 1.0)
                self.rates[key] += [rate] if number else []  # the first round warms up

    def over(self, key: Key, other: Key) -> float:
        return median([a / b for a, b in zip(self.rates[key], self.rates[other], strict=True)])

    def table(self, name: str, ours: str, rows: int, record: Record) -> None:
        """Rows a second, milliseconds of one client's step, and how many times faster ours is at the same clients."""
        shown = [
            {
                "side": key[0],
                "clients": key[1],
                "rows/s": median(found),
                "ms a step": 1e3 * rows * key[1] / median(found),
                "of in process": self.over(key, self.base[key]),
                "ours is faster by": self.over((ours, key[1]), key),
            }
            for key, found in self.rates.items()
        ]
        record.table(name, shown)
        record.figures[f"{name}, rates"] = {f"{side}, {count}": found for (side, count), found in self.rates.items()}

    def targets(self, ours: str, peers: Sequence[str], record: Record) -> None:
        for peer in peers:
            for count in self.arguments.clients:
                what = f"{ours} / {peer}, {count} client{'s' * (count > 1)}"
                record.target(what, self.over((ours, count), (peer, count)), at_least=1.0)


def bench_span(arguments: argparse.Namespace, record: Record) -> Sides:
    most, model, peers = max(arguments.clients), minilm(), HERE / "peers"
    sides, python = Sides(arguments), str(arguments.peers_python)
    size = {"rows": arguments.rows, "tokens": arguments.tokens}
    with ExitStack() as stack, Workers() as workers:
        ours = stack.enter_context(served(model, CORES))
        (private,) = workers.add([(STUDENT, "private", "--private", model)])
        (alone,) = workers.add([(str(peers / "span.py"), model)], python)
        sides.add("in process, with codec", [private], work="pair", **size | {"threads": CORES})
        sides.add("in process, span alone", [alone], **size | {"threads": CORES})
        for name, flags, work in (
            ("ours", (), "pair"),
            ("ours, no shared memory", ("--no-shared-memory",), "pair"),
            ("ours, and Step", (), "step"),
        ):
            commands = [(STUDENT, f"{name}-{i}", "--remote", ours.address, *FLOAT32, *flags) for i in range(most)]
            sides.add(name, workers.add(commands), ("in process, with codec", 1), work=work, **size)
        codec = Path(stack.enter_context(tempfile.TemporaryDirectory()), "codec.safetensors")
        coded = first_answer(ours.address, codec)
        for name, file, flags, base, expected in (
            ("hivemind", "hivemind_teacher.py", (), "in process, span alone", alone.ready),
            ("gRPC and pickle", "pickle_teacher.py", (), "in process, span alone", alone.ready),
            ("gRPC and pickle, codecs", "pickle_teacher.py", ("--codec", str(codec)), "in process, with codec", coded),
        ):
            serve = (str(peers / file), "--serve", model, "--threads", str(CORES), "--tokens", str(arguments.tokens))
            line = stack.enter_context(process(*serve, *flags, python=python)).line
            clients = workers.add([(str(peers / file), "--client", line)] * most, python)
            check_span(name, clients, expected)
            sides.add(name, clients, (base, 1), **size)
        sides.measure()
    sides.table("span", "ours", arguments.rows, record)
    sides.targets("ours", ("hivemind", "gRPC and pickle", "gRPC and pickle, codecs"), record)
    return sides


def first_answer(address: str, codec: Path) -> dict[str, float]:
    """What `span.work`'s fixed message comes to at ours; the weights of the codec that it went through are written to a file."""
    torch.manual_seed(0)
    message = torch.randn(ROWS, TOKENS, WIDTH, requires_grad=True)
    with RemoteTeacher(
        address, student="check", compression="none", message_width=WIDTH, entry=2, exit=6, seed=0
    ) as teacher:
        answer = teacher(message)
        answer.square().mean().backward()
    own = TeacherCodec(CodecShape(WIDTH, WIDTH, WIDTH), seed=0)
    sides = nn.ModuleDict({"decoder": own.decoder(WIDTH), "encoder": own.encoder(WIDTH)})
    save_file(sides.state_dict(), codec)
    assert message.grad is not None
    return {"answer": answer.square().sum().item(), "gradient": message.grad.square().sum().sqrt().item()}


def check_span(name: str, clients: Sequence[Worker], expected: Mapping[str, float]) -> None:
    """A peer that answers something else than the same work in process, or at ours, is not measured."""
    for client in clients:
        for what, value in expected.items():
            if not math.isclose(client.ready[what], value, rel_tol=1e-4):
                raise SystemExit(f"{name}: {what} is {client.ready[what]}, expected {value}")


def bench_observe(arguments: argparse.Namespace, record: Record) -> Sides:
    most, model, python = max(arguments.clients), str(packaged_folder("smollm2")), str(arguments.peers_python)
    file, sides = str(HERE / "peers" / "topk_teacher.py"), Sides(arguments)
    serve = (file, "--serve", model, "--threads", str(CORES))
    with served(model, CORES) as ours, process(*serve, python=python) as (_, line), Workers() as workers:
        address, vocabulary = line.split()
        asks = {"rows": arguments.observed_rows, "tokens": arguments.tokens, "top": arguments.top}
        asks["vocabulary"] = int(vocabulary)
        theirs = workers.add([(file, "--client", address)] * most, python)
        check_topk(ours.address, theirs[0].ready)
        (private,) = workers.add([(STUDENT, "private", "--private", model)])
        commands = [(STUDENT, f"student-{i}", "--remote", ours.address, *FLOAT32) for i in range(most)]
        students, base = workers.add(commands), ("in process", 1)
        sides.add("in process", [private], work="observe", **asks | {"threads": CORES})
        sides.add("ours", students, base, work="observe", **asks)
        sides.add("JSON over HTTP", theirs, base, **asks)
        sides.add("ours, asked before", students, base, work="observe again", **asks)
        sides.measure()
    sides.table("observe", "ours", arguments.observed_rows, record)
    sides.targets("ours", ("JSON over HTTP",), record)
    return sides


def check_topk(address: str, theirs: Mapping[str, Any]) -> None:
    """Both teachers must say the same of the same ids."""
    ids = torch.arange(2 * 16).reshape(2, 16)
    with RemoteTeacher(address, student="check", compression="none") as teacher:
        found = teacher.observe({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, ["logits.top8"])
    values = found["logits.top8"][:, :, 0]
    if not torch.allclose(values, torch.tensor(theirs["logits"]), atol=1e-2):
        raise SystemExit("the HTTP teacher and ours give other logits for the same ids")


def plot(parts: Mapping[str, tuple[Sides, str]], record: Record) -> None:
    figure, plots = record.axes(len(parts))
    for axes, (title, (sides, base)) in zip(plots if len(parts) > 1 else [plots], parts.items(), strict=True):
        names = [name for name in dict.fromkeys(name for name, _ in sides.rates) if not name.endswith("asked before")]
        for place, count in enumerate(record.settings["clients"]):
            shown = [(row, name) for row, name in enumerate(names) if (name, count) in sides.rates]
            bars = axes.barh(
                [row + 0.36 * place - 0.18 for row, _ in shown],
                [median(sides.rates[name, count]) for _, name in shown],
                0.34,
                label=f"{count} client{'s' * (count > 1)}",
            )
            axes.bar_label(bars, fmt="%.3g", fontsize=8, padding=2)
        axes.axvline(median(sides.rates[base, 1]), color="grey", ls=":", label=base)
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        axes.set(xlabel="rows/s, all clients (target: ours ahead of every peer)", title=title)
        axes.margins(x=0.12)
        axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=3)
    record.plot(figure)


def main() -> None:
    flags = parser(__doc__)
    flags.add_argument("--peers-python", type=Path, default=HERE.parent / ".venv-peers" / "bin" / "python")
    flags.add_argument("--clients", type=int, nargs="+", default=[1, 4])
    flags.add_argument("--rows", type=int, default=8)
    flags.add_argument("--tokens", type=int, default=64)
    flags.add_argument("--observed-rows", type=int, default=4)
    flags.add_argument("--top", type=int, default=64)
    flags.add_argument("--seconds", type=float, default=3.0, help="of one side in one round")
    flags.add_argument("--rounds", type=int, default=3)
    flags.add_argument("--parts", nargs="+", default=["span", "observe"], choices=["span", "observe"])
    arguments = flags.parse_args()
    if not arguments.peers_python.exists():
        raise SystemExit(
            f"{arguments.peers_python} is not there: `make bench-peers` installs the peers, then runs this"
        )
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # of all that are started: threads that wait sleep
    os.environ["HIVEMIND_LOGLEVEL"] = "ERROR"
    with Record("peers", arguments) as record:
        parts: dict[str, tuple[Sides, str]] = {}
        size = f"{arguments.rows}x{arguments.tokens}"
        if "span" in arguments.parts:
            title = f"Forward + Backward through the span, {size}"
            parts[title] = bench_span(arguments, record), "in process, with codec"
        if "observe" in arguments.parts:
            title = f"Top {arguments.top} logits, {arguments.observed_rows}x{arguments.tokens}, SmolLM2-135M"
            parts[title] = bench_observe(arguments, record), "in process"
        plot(parts, record)


if __name__ == "__main__":
    main()
