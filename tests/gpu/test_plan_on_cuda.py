"""What is planned for a CUDA device against what an engine on it then holds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from teacher_server.actor import TeacherActor, build_card
from teacher_server.config import ServerConfig
from teacher_server.local import make_engine
from teacher_server.metrics.metrics import Metrics
from teacher_server.plan.planning import make_plan
from teacher_server.scheduling.scheduler import InlineScheduler
from teaching_protocol.diagnosis.probe import Probe, noise
from teaching_protocol.verbs import SessionSettings

ROWS, TOKENS, WIDTH = 4, 16, 16


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("model_type", ["bert", "llama", "gpt2", "vit", "resnet"])
def test_a_planned_graph_is_what_the_device_holds(
    model_type: str, dtype: str, model_folder: Callable[[str], Path]
) -> None:
    config = ServerConfig.model_validate({"model": str(model_folder(model_type)), "dtype": dtype, "device": "cuda"})
    planned = make_plan(config, ROWS, TOKENS, SessionSettings(message_width=WIDTH)).room.sizes
    engine = make_engine(config, Metrics())
    actor = TeacherActor(build_card(engine, config), engine, InlineScheduler(engine), config, Metrics())
    settings = SessionSettings(message_width=WIDTH, entry=actor.card.entry, exit=actor.card.exit)
    with Probe(actor, "planned", settings, 30.0) as probe:
        probe.forward(noise(ROWS, TOKENS, WIDTH), follows=True)
        assert planned.graph == pytest.approx(engine.graphs.size_bytes, rel=0.2)
