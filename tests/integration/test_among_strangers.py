"""Sixteen students train at once over gRPC against one server; each gets what it gets alone."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load

from student_client import RemoteTeacher
from teacher_server.app import TeacherApp
from teacher_server.config import ServerConfig
from teacher_server.models.loading import load_teacher
from teaching_protocol.verbs import OptimizerSettings
from tests.integration.gate import poll
from tests.unit.teacher_server.tiny_models import tiny_inputs

STUDENTS, STEPS = 16, 3
Facts = dict[str, torch.Tensor]


def options_of(place: int, optimizer: str) -> dict[str, Any]:
    """No two students alike, and most of them able to share a pass with some others."""
    return {
        "student": f"student-{place}",
        "seed": place,
        "message_width": 6 + place % 5,
        "codec_depth": 1 + place % 3,
        "entry": 1,
        "exit": 3 if place % 8 == 7 else 4,
        "inject": ("replace", "replace", "add", "prefix")[place % 4],
        "message_tokens": 4 if place % 3 == 0 else 0,
        "pooling": ("mean", "attention", "cls")[place // 3 % 3],
        "optimizer": OptimizerSettings(optimizer),
        "compression": "none",
    }


def train(address: str, place: int, optimizer: str, ready: Callable[[], object]) -> Facts:
    """Three whole steps: every answer, every gradient of the message, and the session at the end."""
    found: Facts = {}
    generator = torch.Generator().manual_seed(place)
    options = options_of(place, optimizer)
    tokens = 4 if options["message_tokens"] or options["inject"] == "add" else 1 + place % 8
    own = tiny_inputs("bert", 1 + place % 3, 4 if options["inject"] == "add" else 6)
    with RemoteTeacher(address, **options) as teacher:
        ready()
        for step in range(STEPS):
            message = torch.randn(len(own["input_ids"]), tokens, options["message_width"], generator=generator)
            message.requires_grad_()
            ports = teacher.forward_ports({"message": message, **own}, ["answer", "teacher_message.exit"])
            torch.stack([value.pow(3).mean() for value in ports.values()]).sum().backward()
            teacher.step(lr=0.05)
            assert message.grad is not None
            found |= {f"{name} {step}": value.detach() for name, value in ports.items()}
            found[f"gradient {step}"] = message.grad
        return found | load(teacher.export_state())


@contextmanager
def serving(folder: Path, **settings: Any) -> Iterator[TeacherApp]:
    was_deterministic = torch.are_deterministic_algorithms_enabled()
    config = ServerConfig(model=str(folder), port=0, metrics_port=-1, **settings)
    try:
        with TeacherApp(config, load_teacher(str(folder))) as app:
            yield app
    finally:
        torch.use_deterministic_algorithms(was_deterministic)


def at_once(app: TeacherApp, optimizer: str) -> list[Facts]:
    """All students at once; the first batch waits until every student's first call is there."""
    address = f"127.0.0.1:{app.port}"
    everybody = threading.Barrier(STUDENTS)
    teacher: Any = app.actor._engine.teacher

    def crowded() -> bool:
        return (app.metrics.registry.get_sample_value("teacher_in_flight") or 0) >= STUDENTS

    def wait(*_: Any) -> None:
        poll(crowded, "all students call")
        hook.remove()

    hook = teacher.family.blocks[0].register_forward_pre_hook(wait)
    with ThreadPoolExecutor(STUDENTS) as pool:
        return list(pool.map(lambda place: train(address, place, optimizer, everybody.wait), range(STUDENTS)))


def one_by_one(app: TeacherApp, optimizer: str) -> list[Facts]:
    return [train(f"127.0.0.1:{app.port}", place, optimizer, lambda: None) for place in range(STUDENTS)]


def count(app: TeacherApp, name: str, **labels: str) -> float:
    return app.metrics.registry.get_sample_value(name, labels) or 0.0


def test_sixteen_students_at_once(model_folder: Callable[[str], Path]) -> None:
    with serving(model_folder("bert")) as app:
        together = at_once(app, "sgd")
        jobs = sum(
            count(app, "teacher_compute_seconds_count", method=each)
            for each in ("Forward", "Backward", "Step", "Export")
        )
        assert jobs == STUDENTS * (3 * STEPS + 1) + 1  # and the warm-up
        of_two = count(app, "teacher_batch_students_bucket", method="Forward", le="2.0")
        assert of_two < count(app, "teacher_batch_students_count", method="Forward")  # some shared with two more
        assert count(app, "teacher_batch_retries_total") == 0
        assert count(app, "teacher_graph_cache_bytes") == count(app, "teacher_sessions") == 0
    with serving(model_folder("bert")) as app:
        alone = one_by_one(app, "sgd")
    for place, (found, wanted) in enumerate(zip(together, alone, strict=True)):
        assert found.keys() == wanted.keys()
        for name, value in wanted.items():
            torch.testing.assert_close(
                found[name], value, atol=1e-5, rtol=1e-5, msg=lambda text, at=f"{place} {name}": f"{at}: {text}"
            )


def test_sixteen_students_at_once_to_the_bit(model_folder: Callable[[str], Path]) -> None:
    with serving(model_folder("bert"), deterministic=True) as app:
        together = at_once(app, "adamw")
    with serving(model_folder("bert"), deterministic=True) as app:
        alone = one_by_one(app, "adamw")
    for found, wanted in zip(together, alone, strict=True):
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], value) for name, value in wanted.items())
