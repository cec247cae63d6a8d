"""A body in half precision: codecs stay float32, and what a student gets is near that of float32, alone or among others."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from student_client import InProcessTeacher
from teacher_server.local import local_teacher
from teacher_server.models.loading import load_teacher
from teacher_server.models.split import FrozenTeacher
from teaching_protocol.errors import NonFiniteError
from tests.calls import Caller
from tests.unit.teacher_server.rooms import Facts, Room, Wish, assert_same
from tests.unit.teacher_server.served_students import MODALITIES, columns_of, run_folder, wire_inputs
from tests.unit.teacher_server.tiny_models import MODEL_TYPES, tiny_inputs, tiny_model

HALVES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
NEAR = {"bfloat16": 0.2, "float16": 0.03}  # of the norm: what rounding of 8 and 11 bits comes to there and back
GRIDS = ("efficientnet", "resnet")
SETTINGS = {"answer_from": "message_and_input", "message_tokens": 4}
OUTPUTS = ("answer", "answer_state", "teacher_message.exit", "hidden.2")


@functools.cache
def teacher_of(model_type: str, dtype: str) -> FrozenTeacher:
    return FrozenTeacher(tiny_model(model_type).to(HALVES.get(dtype, torch.float32)), model_type)


def wishes(model_type: str) -> list[Wish]:
    """Two students of other lengths where the family takes them, and one with inputs of its own."""
    generator = torch.Generator().manual_seed(3)
    found = []
    for place, tokens in enumerate((16, 16) if model_type in GRIDS else (5, 3)):
        width = 8 - place
        message = torch.randn(2, tokens, width, generator=generator)
        found.append(Wish({"message": message}, {"message_width": width, "entry": 1, "exit": 3}))
    message = torch.randn(2, 4, 8, generator=generator)
    own = Wish({"message": message, **tiny_inputs(model_type, 2, 5)}, {"entry": 1, "exit": 3} | SETTINGS, OUTPUTS)
    return [*found, own]


def assert_near(found: Facts, wanted: Facts, share: float) -> None:
    """Within a share of the norm of each port and each input's gradient, and of all codec gradients as one."""
    assert found.keys() == wanted.keys()
    assert {value.dtype for value in (*found.values(), *wanted.values())} == {torch.float32}
    ours, theirs = _as_one(found), _as_one(wanted)
    for name, value in theirs.items():
        assert (ours[name] - value).norm() <= share * value.norm(), name


def _as_one(facts: Facts) -> Facts:
    gathered = [value.flatten() for name, value in sorted(facts.items()) if name.startswith("gathered.")]
    rest = {name: value for name, value in facts.items() if not name.startswith("gathered.")}
    return rest | ({"gathered": torch.cat(gathered)} if gathered else {})


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_every_family_is_near_itself_in_float32(model_type: str, dtype: str) -> None:
    asked = wishes(model_type)
    with Room(teacher_of(model_type, dtype), asked) as room:
        found = room.exchange()
        for session in room.actor.sessions.live():
            assert {value.dtype for value in session.codec.state_dict().values()} == {torch.float32}
            assert {grad.dtype for grad in session.gathered if grad is not None} == {torch.float32}
    with Room(teacher_of(model_type, "float32"), asked) as room:
        wanted = room.exchange()
    for one, other in zip(found, wanted, strict=True):
        assert any(name.startswith("gathered.") for name in other)
        assert_near(one, other, NEAR[dtype])


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_among_strangers_is_near_alone(model_type: str, dtype: str) -> None:
    """As near as the body's own rounding lets a row of another batch be."""
    asked, teacher = wishes(model_type), teacher_of(model_type, dtype)
    with Room(teacher, asked) as room:
        found = room.exchange()
        assert room.metric("teacher_batch_retries_total") == 0
    with Room(teacher, asked) as room:
        for place, facts in enumerate(found):
            assert_near(facts, room.alone(place), NEAR[dtype])


@pytest.mark.parametrize("modality", MODALITIES)
def test_a_trained_student_in_bfloat16(modality: str, tmp_path: Path) -> None:
    teacher = load_teacher(run_folder(tmp_path, modality), dtype="bfloat16")
    own = {name: value[:2] for name, value in wire_inputs(columns_of(modality)).items()}
    wish = Wish({"message": torch.randn(2, 1, 8), **own}, SETTINGS | {"message_tokens": 1, "entry": 1, "exit": 3})
    with Room(teacher, [wish, wish]) as together, Room(teacher, [wish]) as alone:
        assert_near(together.exchange()[0], alone.alone(0), NEAR["bfloat16"])


@pytest.mark.parametrize("dtype", HALVES)
def test_to_the_bit_in_deterministic_mode(dtype: str) -> None:
    asked, teacher = wishes("llama"), teacher_of("llama", dtype)
    with Room(teacher, asked, deterministic=True) as room:
        crowd = {place: room.alone(place) for place in (2, 0, 1)}
    for place, wish in enumerate(asked):
        with Room(teacher, [Wish({})] * place + [wish], deterministic=True) as room:
            for name, value in room.alone(place).items():
                assert torch.equal(value, crowd[place][name]), name


def test_the_weights_stay_as_they_are_and_a_step_moves_the_codec() -> None:
    teacher = FrozenTeacher(tiny_model("bert").to(torch.bfloat16))
    with Caller(local_teacher(teacher), "a") as caller:
        before = caller.forward()[1].outputs["answer"]
        for step in range(1, 6):
            caller.backward(caller.forward()[0])
            caller.step(step, lr=0.01)
        assert not torch.equal(before, caller.forward()[1].outputs["answer"])
    assert FrozenTeacher(teacher.model).model_hash == teacher.model_hash


def test_a_float16_that_overflows_is_refused_and_touches_nobody_else() -> None:
    """65504 is the largest float16: beyond it a row is infinite, and its owner alone hears of it."""
    teacher, asked = teacher_of("bert", "float16"), [Wish({"message": torch.randn(2, 3, 8)}) for _ in range(2)]
    with Room(teacher, asked) as room:
        with torch.no_grad():
            codec = room.actor.sessions.get(room.callers[1].session).codec
            next(iter(codec.decoders.values()))[-1].bias.fill_(1e6)
        answers = room.run(room.forwards())
        assert isinstance(answers[1], NonFiniteError)
        with Room(teacher, asked[:1]) as alone:
            (wanted,) = alone.run(alone.forwards())
        assert_near(dict(answers[0].outputs), dict(wanted.outputs), NEAR["float16"])


@pytest.mark.parametrize("teacher_dtype", ["float32", "bfloat16"])
def test_a_caller_in_this_process_may_train_under_autocast(teacher_dtype: str) -> None:
    """The teacher computes as it does for a remote student: codecs in float32, whatever the loop around it does."""

    def step(wrap: Callable[[], Any]) -> Facts:
        actor = local_teacher(teacher_of("bert", teacher_dtype))
        message = torch.linspace(-1, 1, 48).reshape(2, 3, 8).requires_grad_()
        with InProcessTeacher(actor, student="a", message_width=8, entry=1, exit=4, seed=0) as teacher:
            with wrap():
                answer = teacher(message)
            answer.square().mean().backward()
        assert message.grad is not None
        return {"answer": answer.detach(), "gradient": message.grad}

    plain = step(lambda: torch.autocast("cpu", enabled=False))
    mixed = step(lambda: torch.autocast("cpu", dtype=torch.bfloat16))
    assert plain["answer"].dtype == mixed["answer"].dtype == torch.float32
    assert_same(mixed, plain, 0.0)
