"""Three choices of the engine, each against its alternative: figures behind decisions 0008 and 0009.

1. A part of a shared graph's calls: one backward through the whole graph, or their Forward run again and a backward of it.
2. Equal codecs of several students, forward and backward: stacked into batched products, or one after the other.
3. Equal AdamWs of several students: updated in one call, or one after the other.
The sides alternate; medians, and above 1 the first is faster.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch

sys.path.insert(0, str(Path(__file__).parent))

from loads import minilm
from recording import Record, parser

from teacher_server.engine.stacking import apply_stacked
from teacher_server.models.loading import load_teacher
from teacher_server.models.split import LayerSpan
from teacher_server.sessions.codecs import CodecShape, TeacherCodec
from teacher_server.sessions.optimizers import Update, build_optimizer, update_together
from teaching_protocol.verbs import OptimizerSettings

WIDTH = 384


def compare(
    name: str, first: Callable[[], object], second: Callable[[], object], rounds: int, device: str
) -> dict[str, Any]:
    settle = torch.cuda.synchronize if torch.device(device).type == "cuda" else lambda: None
    sides = {0: first, 1: second}
    seconds: dict[int, list[float]] = {0: [], 1: []}
    for number in range(rounds + 2):
        for side in sorted(sides, reverse=bool(number % 2)):
            started = time.perf_counter()
            sides[side]()
            settle()
            if number > 1:
                seconds[side].append(time.perf_counter() - started)
    ratio = statistics.median(other / one for one, other in zip(*seconds.values(), strict=True))
    medians = [1e3 * statistics.median(each) for each in seconds.values()]
    return {"what": name, "ms": medians[0], "other's ms": medians[1], "times faster": ratio}


def parts_of_a_graph(dtype: str, rounds: int, device: str) -> list[dict[str, Any]]:
    shown = []
    teacher, span, calls = load_teacher(minilm(), dtype, device), LayerSpan(2, 6), 4
    for rows, tokens in ((8, 32), (2, 8)):

        def graph(count: int, rows: int = rows, tokens: int = tokens) -> tuple[torch.Tensor, torch.Tensor]:
            states = torch.randn(count * rows, tokens, WIDTH, device=device, requires_grad=True)
            return states, teacher.upper(
                states, torch.ones(states.shape[:2], dtype=torch.bool, device=device), span
            ).float()

        states, left = graph(calls)
        for part in (1, 2, 3):
            sent = torch.zeros_like(left)
            sent[: part * rows] = 1.0

            def whole(sent: torch.Tensor = sent, ends: tuple[torch.Tensor, torch.Tensor] = (left, states)) -> None:
                torch.autograd.grad(*ends, sent, retain_graph=True)

            def again(part: int = part, graph: Callable[[int], tuple[torch.Tensor, torch.Tensor]] = graph) -> None:
                fresh, out = graph(part)
                torch.autograd.grad(out, fresh, torch.ones_like(out))

            what = f"{dtype}: {part} of {calls} calls of {rows}x{tokens}, whole graph / again"
            shown.append(compare(what, whole, again, rounds, device))
    return shown


def codecs(rounds: int, device: str, width: int = WIDTH) -> list[dict[str, Any]]:
    shown = []
    for students in (2, 3, 4, 8, 16):
        for rows in (16, 64, 512):
            shape = CodecShape(width, width, 128)
            built = [TeacherCodec(shape, seed).to(device).encoder(width) for seed in range(students)]
            states = [torch.randn(1, rows, width, device=device, requires_grad=True) for _ in built]
            targets = [*states, *(parameter for codec in built for parameter in codec.parameters())]

            def backward(found: list[torch.Tensor], targets: list[torch.Tensor] = targets) -> None:
                torch.autograd.grad(found, targets, [torch.ones_like(each) for each in found])

            given = list(zip(built, states, strict=True))
            made = compare(
                f"{students} codecs on {rows} states each, stacked / loop",
                lambda given=given, backward=backward: backward(apply_stacked(given)),
                lambda given=given, backward=backward: backward([codec(each) for codec, each in given]),
                rounds,
                device,
            )
            shown.append(made | {"students": students, "states": rows})
    return shown


def optimizers(rounds: int, device: str) -> list[dict[str, Any]]:
    shown = []
    for width, message in ((32, 8), (WIDTH, 128)):
        for students in (1, 4, 16):
            updates = []
            for seed in range(students):
                parameters = list(TeacherCodec(CodecShape(width, width, message), seed).to(device).parameters())
                for parameter in parameters:
                    parameter.grad = torch.randn_like(parameter)
                updates.append(Update(build_optimizer(parameters, OptimizerSettings()), 1e-4))
            made = compare(
                f"{students} AdamWs of width {width}, together / one by one",
                lambda updates=updates: update_together(updates),
                lambda updates=updates: [update_together([update]) for update in updates],
                rounds,
                device,
            )
            shown.append(made)
    return shown


def main() -> None:
    flags = parser(__doc__)
    flags.add_argument("--rounds", type=int, default=15)
    flags.add_argument("--threads", type=int, default=psutil.cpu_count() or 1)
    flags.add_argument("--device", default="cpu", help="cuda measures the choices that depend on a device")
    arguments = flags.parse_args()
    torch.set_num_threads(arguments.threads)
    with Record("edges", arguments) as record:
        for dtype in ("float32", "bfloat16"):
            record.table(f"parts of a graph, {dtype}", parts_of_a_graph(dtype, arguments.rounds, arguments.device))
        record.table("codecs", codecs(arguments.rounds, arguments.device))
        record.table("optimizers", optimizers(arguments.rounds, arguments.device))


if __name__ == "__main__":
    main()
