"""What is planned without weights against what a loaded engine then holds; and what follows from sizes."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from teacher_server.actor import TeacherActor, build_card
from teacher_server.cli import app
from teacher_server.config import ServerConfig
from teacher_server.live import LiveSettings
from teacher_server.local import make_engine
from teacher_server.metrics.metrics import Metrics
from teacher_server.plan.planning import make_plan
from teacher_server.plan.sizing import BUSY, Measured, Room, Sizes, students_served
from teacher_server.plan.weights import file_bytes
from teacher_server.scheduling.scheduler import InlineScheduler
from teaching_protocol.diagnosis.probe import Probe, noise
from teaching_protocol.errors import ModelLoadError
from teaching_protocol.verbs import SessionSettings
from tests.unit.teacher_server.tiny_models import MODEL_TYPES

TOLERANCE = 0.02  # the figures below are in fact equal; another release of torch may save a little else
ROWS, TOKENS, WIDTH = 4, 16, 16


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_planned_is_what_an_engine_holds(model_type: str, model_folder: Callable[[str], Path]) -> None:
    config = ServerConfig(model=str(model_folder(model_type)), device="cpu", dtype="float32")
    planned = make_plan(config, ROWS, TOKENS, SessionSettings(message_width=WIDTH)).room.sizes
    engine = make_engine(config, Metrics())
    actor = TeacherActor(build_card(engine, config), engine, InlineScheduler(engine), LiveSettings(config), Metrics())
    tensors = chain(engine.teacher.model.parameters(), engine.teacher.model.buffers())
    assert planned.weights == pytest.approx(sum(each.nbytes for each in tensors), rel=TOLERANCE)
    settings = SessionSettings(message_width=WIDTH, entry=actor.card.entry, exit=actor.card.exit)
    with Probe(actor, "planned", settings, 30.0) as probe:
        probe.forward(noise(ROWS, TOKENS, WIDTH), follows=True)
        assert planned.graph == pytest.approx(engine.graphs.size_bytes, rel=TOLERANCE)
        (session,) = actor.sessions.live()
        assert planned.session == session.size_bytes


def test_half_precision_weights_are_half(model_folder: Callable[[str], Path]) -> None:
    folder, settings = str(model_folder("llama")), SessionSettings(message_width=WIDTH)
    whole, half = (
        make_plan(ServerConfig(model=folder, dtype=dtype), ROWS, TOKENS, settings).weights  # type: ignore[arg-type]
        for dtype in ("float32", "bfloat16")
    )
    assert set(half) <= {"bfloat16", "float32"}
    assert half["bfloat16"] == whole["float32"] // 2 or half["bfloat16"] * 2 + half["float32"] == whole["float32"]


def test_bytes_in_the_files_are_those_of_the_headers(model_folder: Callable[[str], Path]) -> None:
    folder = model_folder("bert")
    (path,) = folder.glob("*.safetensors")
    found = file_bytes(str(folder))
    assert 0 < path.stat().st_size - sum(found.values()) < 20_000  # the header


def test_a_file_without_a_header(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 9)
    with pytest.raises(ModelLoadError, match="no safetensors header"):
        file_bytes(str(tmp_path))


SIZES = Sizes(
    weights=100, session=5, graph=10, message=1, replies=5, knowledge_budget=50, graph_budget=60, state_budget=10**6
)


def test_students_that_fit() -> None:
    room = Room(370, SIZES, 512, replies_here=True)
    assert (room.fixed, room.left) == (170, 200)
    assert (room.sessions, room.kept, room.kept_by_budget) == (20, 10, 6)
    assert Room(100, SIZES, 512, replies_here=True).kept == 0
    assert Room(10**6, SIZES, 512, replies_here=True).sessions == 512


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.booleans())
def test_more_memory_never_holds_fewer(memory: int, more: int, here: bool) -> None:
    less, greater = Room(memory, SIZES, 512, here), Room(memory + more, SIZES, 512, here)
    assert less.sessions <= greater.sessions
    assert 0 <= less.kept_by_budget <= less.kept <= less.sessions
    assert less.kept <= greater.kept


def test_students_served() -> None:
    measured = (Measured(8, 0.1, 0), Measured(32, 0.2, 0))
    assert students_served(measured, 8, 1.0, merged=False) == int(BUSY / 0.1)
    assert students_served(measured, 8, 1.0, merged=True) == int(BUSY / 0.05)


def test_the_command_measures_and_prints_one_object(model_folder: Callable[[str], Path]) -> None:
    words = ["plan", "--model", str(model_folder("bert")), "--rows", "2", "--tokens", "8", "--memory", "4", "--json"]
    done = CliRunner().invoke(app, [*words, "--measure", "--every", "1"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["bytes"]["graph"] == found["measured"][0]["graph_bytes"]
    assert [each["rows"] for each in found["measured"]] == [2, 4, 8, 16, 32]
    assert found["served"][0]["merged"] >= found["served"][0]["alone"] > 0
    assert found["memory_bytes"] == 4 * 2**30


def test_the_tables_are_printed_without_loading(model_folder: Callable[[str], Path]) -> None:
    done = CliRunner().invoke(app, ["plan", "--model", str(model_folder("vit")), "--tokens", "17", "--memory", "0.01"])
    assert done.exit_code == 0, done.output
    assert "it does not fit" in " ".join(done.stdout.split())
