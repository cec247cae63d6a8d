"""A student process for benchmarks: a codec's messages to a teacher behind a server, or to one of its own in this process.

It has no student model: messages are random and the loss is their answer's mean square, so that what is measured is the
teacher's side. Started by `workers.py`; an order says the rows, the tokens and what to do.
"""

# ruff: noqa: E402
from __future__ import annotations

from teaching_protocol.memory import keep_freed_memory

keep_freed_memory()  # as student-client does, before anything starts a thread

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import torch
from workers import obey

from student_client import InProcessTeacher, RemoteTeacher
from student_client.teachers.remote import Teacher

WIDTH, SPAN = 384, (2, 6)


def built(arguments: argparse.Namespace) -> Teacher:
    entry, exit = SPAN
    options: dict[str, Any] = {"message_width": WIDTH, "entry": entry, "exit": exit, "seed": 0, "deadline_s": 300.0}
    if arguments.private:
        from teacher_server.local import local_teacher

        own = local_teacher(arguments.private, dtype=arguments.dtype)
        return InProcessTeacher(own, student=arguments.name, **options)
    wire = {"compression": arguments.compression, "shared_memory": not arguments.no_shared_memory}
    return RemoteTeacher(arguments.remote, student=arguments.name, **wire, **options)


def trains(teacher: Teacher, order: dict[str, Any]) -> Callable[[], None]:
    """Forward and Backward, and a Step where the order says so."""
    message = torch.randn(order["rows"], order["tokens"], WIDTH, requires_grad=True)

    def step() -> None:
        message.grad = None
        teacher(message).square().mean().backward()
        if order["work"] == "step":
            teacher.step(lr=1e-4)

    return step


def observes(teacher: Teacher, order: dict[str, Any]) -> Callable[[], None]:
    """The largest logits of token ids: new ones each time, or the same in this order and in all others."""
    size, vocabulary, port = (order["rows"], order["tokens"]), order["vocabulary"], f"logits.top{order['top']}"

    fixed = torch.Generator().manual_seed(0)

    def inputs(generator: torch.Generator | None = None) -> dict[str, torch.Tensor]:
        ids = torch.randint(vocabulary, size, generator=generator)
        return {"input_ids": ids, "attention_mask": torch.ones(size, dtype=torch.int64)}

    same = inputs(fixed) if order["work"] == "observe again" else None
    return lambda: teacher.observe(same or inputs(), [port])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", help="of the student")
    side = parser.add_mutually_exclusive_group(required=True)
    side.add_argument("--remote", metavar="ADDRESS")
    side.add_argument("--private", metavar="MODEL")
    parser.add_argument("--dtype", default="float32", help="of a private teacher's weights")
    parser.add_argument("--compression", default="bf16", help="of a remote teacher's messages")
    parser.add_argument("--no-shared-memory", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    teacher = built(arguments)
    enrolled: list[Teacher] = []

    def prepare(order: dict[str, Any]) -> Callable[[], object]:
        if not enrolled:  # with the first order, so that a server's memory grows with those at work
            enrolled.append(teacher.enroll())
        return (observes if order["work"].startswith("observe") else trains)(teacher, order)

    obey(prepare)
    for each in enrolled:
        each.leave()


if __name__ == "__main__":
    main()
