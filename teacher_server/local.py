"""A teacher in the caller's own process: the same actor as behind gRPC, without queue and network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from teacher_server.actor import TeacherActor, build_card
from teacher_server.config import ServerConfig
from teacher_server.engine.engine import Engine
from teacher_server.live import LiveSettings
from teacher_server.metrics.metrics import Metrics
from teacher_server.models.loading import load_teacher, spread_of
from teacher_server.models.split import FrozenTeacher
from teacher_server.parallel.start import split_teacher
from teacher_server.scheduling.scheduler import InlineScheduler

__all__ = ["local_teacher", "make_engine"]


def local_teacher(model: str | Path | FrozenTeacher, **settings: Any) -> TeacherActor:
    """Loads a teacher to be used from this process, through `student_client.InProcessTeacher`.

    Args:
        model: a Hugging Face name, a folder with a model or a trained student, or a teacher that is loaded already.
        settings: fields of `ServerConfig`.
    """
    teacher = model if isinstance(model, FrozenTeacher) else None
    config = ServerConfig(model=str(model) if teacher is None else teacher.name or "local", **settings)
    metrics = Metrics()
    engine = make_engine(config, metrics, teacher)
    return TeacherActor(build_card(engine, config), engine, InlineScheduler(engine), LiveSettings(config), metrics)


def make_engine(config: ServerConfig, metrics: Metrics, teacher: FrozenTeacher | None = None) -> Engine:
    """Loads the configured model, unless one is given, and builds the engine around it."""
    if teacher is None and config.tensor_parallel > 1:
        teacher = split_teacher(config)
    elif teacher is None:
        spread = spread_of(config)
        teacher = load_teacher(
            config.model, config.dtype, config.device, config.trust_remote_code, config.image_size, spread
        )
    if config.compile:
        teacher.compile(config.compile_backend)
    return Engine(teacher, config, metrics)
