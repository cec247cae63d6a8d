"""A compiled span: the same numbers, at any size, and nothing left to compile once the server serves."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from teacher_server.app import TeacherApp
from teacher_server.config import ServerConfig
from teacher_server.models.loading import load_teacher
from teacher_server.models.split import FrozenTeacher, LayerSpan
from teaching_protocol.errors import InvalidSetting
from tests.calls import Caller
from tests.unit.teacher_server.rooms import Room, Wish, assert_same
from tests.unit.teacher_server.served_students import run_folder
from tests.unit.teacher_server.tiny_models import tiny_inputs, tiny_model

LLAMA, RESNET = (pytest.param(name, marks=pytest.mark.slow) for name in ("llama", "resnet"))

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:torch", "ignore::FutureWarning:torch")


@pytest.fixture(autouse=True)
def _nothing_compiled() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def graphs() -> int:
    """Graphs that were compiled so far."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def wishes(model_type: str) -> list[Wish]:
    """Students of several lengths, one with a mask; a grid is a grid."""
    generator = torch.Generator().manual_seed(0)
    lengths = (16, 16) if model_type in ("efficientnet", "resnet") else (3, 6)
    found = []
    for place, tokens in enumerate(lengths):
        inputs = {"message": torch.randn(1 + place % 3, tokens, 8, generator=generator)}
        if tokens == 6:
            inputs["message_mask"] = torch.arange(6).expand(len(inputs["message"]), -1) < 4
        found.append(Wish(inputs, {"entry": 1, "exit": 3}))
    own = tiny_inputs(model_type, 2, 4)
    message = {"message": torch.randn(2, 4, 8, generator=generator)}
    settings = {"message_tokens": 4, "answer_from": "message_and_input", "entry": 1, "exit": 3}
    return [*found, Wish(message | own, settings, ("answer", "hidden.2"))]


def compiled(model_type: str, backend: str) -> FrozenTeacher:
    teacher = FrozenTeacher(tiny_model(model_type), model_type)
    teacher.compile(backend)
    return teacher


@pytest.mark.parametrize("model_type", ["bert", LLAMA, RESNET])
def test_a_compiled_span_gives_the_same(model_type: str) -> None:
    """Outputs, message gradients and codec gradients; the backend keeps torch's own kernels."""
    asked = wishes(model_type)
    with Room(FrozenTeacher(tiny_model(model_type), model_type), asked) as room:
        wanted = room.exchange()
    before = graphs()
    with Room(compiled(model_type, "aot_eager"), asked) as room:
        found = room.exchange()
        assert room.metric("teacher_graph_cache_hits_total") == len(asked)
    assert graphs() > before, "nothing was compiled"
    for one, other in zip(found, wanted, strict=True):
        assert_same(one, other)


@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor makes kernels for a CPU with g++, which is not here")
def test_kernels_of_inductor_give_the_same() -> None:
    plain, made = FrozenTeacher(tiny_model("llama")), compiled("llama", "inductor")
    for rows, tokens in ((2, 6), (5, 3)):
        states = torch.randn(rows, tokens, 32, requires_grad=True)
        wanted, found = (teacher.upper(states, None, LayerSpan(1, 4)) for teacher in (plain, made))
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
        sent = torch.randn_like(wanted)
        grads = [torch.autograd.grad(each, states, sent)[0] for each in (wanted, found)]
        torch.testing.assert_close(grads[1], grads[0], atol=1e-5, rtol=1e-5)


def test_a_compiled_graph_is_weighed_and_run_again() -> None:
    teacher, asked = compiled("llama", "aot_eager"), wishes("llama")[:2]
    with Room(teacher, asked) as kept, Room(teacher, asked, graph_cache_bytes=0) as again:
        forwards = kept.forwards()
        kept.run(forwards)
        assert kept.graph_bytes > 10 * sum(wish.inputs["message"].nbytes for wish in asked)
        for one, other in zip(kept.exchange(), again.exchange(), strict=True):
            assert_same(one, other)
        assert again.metric("teacher_graph_recomputes_total") == len(asked)


@pytest.mark.parametrize("model_type", ["bert", RESNET])
def test_nothing_is_compiled_after_the_server_serves(model_type: str, model_folder: Callable[[str], Path]) -> None:
    config = ServerConfig(
        model=str(model_folder(model_type)), port=0, metrics_port=-1, compile=True, compile_backend="aot_eager"
    )
    side = 4 if model_type == "resnet" else 1
    with TeacherApp(config) as app:
        before = graphs()
        assert before >= (12 if model_type == "bert" else 4), "more than torch allows a function by itself"
        settings = {"entry": app.actor.card.entry, "exit": app.actor.card.exit}
        for rows, tokens in ((1, 1), (2, 7), (5, 2), (1, 9), (4, 4)):
            with Caller(f"127.0.0.1:{app.port}", f"{rows}-{tokens}", **settings) as caller:
                message = torch.randn(rows, tokens if side == 1 else 64, 8)
                forward, reply = caller.forward(inputs={"message": message})
                caller.backward(forward, grads={"answer": torch.randn_like(reply.outputs["answer"])})
                if tokens > 1 and side == 1:
                    mask = torch.arange(tokens).expand(rows, -1) < tokens - 1
                    caller.forward(inputs={"message": message, "message_mask": mask})
        assert graphs() == before


def test_what_cannot_be_compiled_says_so(tmp_path: Path) -> None:
    with pytest.raises(InvalidSetting, match=r"compile: nonsense makes no kernels here .* leave compile away"):
        FrozenTeacher(tiny_model("bert")).compile("nonsense")
    with pytest.raises(InvalidSetting, match="layers of a text_student are small"):
        load_teacher(run_folder(tmp_path, "text")).compile()
    with pytest.raises(ValidationError, match="compile with deterministic"):
        ServerConfig(model="tiny", compile=True, deterministic=True)
