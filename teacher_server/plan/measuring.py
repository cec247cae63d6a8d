"""Seconds of whole steps of a loaded teacher on its device, at several batch sizes; no network, no other student."""

from __future__ import annotations

import time

import torch

from teacher_server.actor import TeacherActor, build_card
from teacher_server.config import ServerConfig
from teacher_server.live import LiveSettings
from teacher_server.local import make_engine
from teacher_server.metrics.metrics import Metrics
from teacher_server.plan.graphs import StepShape
from teacher_server.plan.sizing import Measured
from teacher_server.scheduling.scheduler import InlineScheduler
from teaching_protocol.diagnosis.probe import Probe, noise

__all__ = ["batch_rows", "measure"]

_ROUNDS = 3
_CALL_S = 600.0
_FACTORS = (1, 2, 4, 8, 16)
_EVERYTHING = 2**62


def batch_rows(shape: StepShape, config: ServerConfig) -> list[int]:
    """A student's own rows, then twice, four times and so on, as far as one batch of this server goes."""
    most = min(config.batch_tokens // shape.tokens, config.max_rows)
    return [shape.rows * factor for factor in _FACTORS if factor == 1 or shape.rows * factor <= most]


def measure(config: ServerConfig, shape: StepShape) -> list[Measured]:
    """Loads the model and takes the quickest of a few steps of each size, after one that warms up."""
    roomy = {"graph_cache_bytes": _EVERYTHING, "session_graph_bytes": _EVERYTHING, "max_rows": 2**20, "compile": False}
    config = config.model_copy(update=roomy)
    metrics = Metrics()
    engine = make_engine(config, metrics)
    actor = TeacherActor(build_card(engine, config), engine, InlineScheduler(engine), LiveSettings(config), metrics)
    with Probe(actor, "plan", shape.settings, _CALL_S) as probe:
        _step(probe, shape, shape.rows)
        found = []
        for rows in batch_rows(shape, config):
            took = [_step(probe, shape, rows) for _ in range(_ROUNDS)]
            reply = probe.forward(noise(rows, shape.tokens, shape.settings.message_width), follows=True)
            found.append(Measured(rows, min(took), engine.graphs.size_bytes))
            probe.backward(reply, torch.zeros_like(reply.answer))
            probe.step(0.0)
    engine.close()
    return found


def _step(probe: Probe, shape: StepShape, rows: int) -> float:
    message = noise(rows, shape.tokens, shape.settings.message_width)
    began = time.perf_counter()
    forward = probe.forward(message, follows=True)
    probe.backward(forward, torch.ones_like(forward.answer))
    probe.step(0.0)
    return time.perf_counter() - began
