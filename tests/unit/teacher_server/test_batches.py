"""Students in one batch get what each gets alone: outputs, message gradients, codec gradients."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

from teacher_server.models.loading import load_teacher
from teacher_server.models.split import FrozenTeacher
from tests.unit.teacher_server.rooms import Room, Wish, assert_same, bodies_run
from tests.unit.teacher_server.served_students import columns_of, run_folder, wire_inputs
from tests.unit.teacher_server.tiny_models import (
    MODEL_TYPES,
    TEXT_TYPES,
    text_bytes,
    tiny_inputs,
    tiny_model,
    tiny_tokenizer,
)

GRIDS = ("efficientnet", "resnet")
ABOUT = ("answer", "answer_state", "teacher_message.enter", "teacher_message.exit", "state_consistency")


@functools.cache
def teacher_of(model_type: str) -> FrozenTeacher:
    return FrozenTeacher(tiny_model(model_type), model_type, tiny_tokenizer() if model_type == "bert" else None)


def message(rows: int, tokens: int, width: int, seed: int = 0, padded: bool = True) -> dict[str, torch.Tensor]:
    """A message whose last row ends a token early, where it may."""
    generator = torch.Generator().manual_seed(100 * rows + 10 * tokens + width + seed)
    mask = torch.ones(rows, tokens, dtype=torch.bool)
    mask[-1, tokens // 2 + 1 :] = not padded
    return {"message": torch.randn(rows, tokens, width, generator=generator), "message_mask": mask}


def assert_alone_and_together(teacher: FrozenTeacher, wishes: list[Wish], tolerance: float = 1e-5) -> None:
    with Room(teacher, wishes) as together:
        found = together.exchange()
        assert together.metric("teacher_graph_recomputes_total") == 0
        assert together.metric("teacher_batch_retries_total") == 0
    with Room(teacher, wishes) as room:
        wanted = [room.alone(place) for place in range(len(wishes))]
    for one, other in zip(found, wanted, strict=True):
        assert any(name.startswith("gathered.") for name in other)
        assert_same(one, other, tolerance)


def other_lengths(model_type: str) -> list[Wish]:
    """Three students whose messages differ in rows, length and width, of a family where they may."""
    layers = teacher_of(model_type).family.layers
    lengths = (16, 16, 16) if model_type in GRIDS else (6, 3, 1)
    return [
        Wish(message(rows, tokens, width, padded=model_type not in GRIDS), {"message_width": width, "exit": layers})
        for rows, tokens, width in zip((2, 3, 1), lengths, (8, 5, 12), strict=True)
    ]


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_every_family_in_one_pass(model_type: str) -> None:
    teacher, wishes = teacher_of(model_type), other_lengths(model_type)
    with Room(teacher, wishes) as room, bodies_run(teacher) as shapes:
        room.run(room.forwards())
        assert [shape[0] for shape in shapes] == [6], "one pass for all rows"
    assert_alone_and_together(teacher, wishes)


@pytest.mark.parametrize("model_type", [name for name in TEXT_TYPES if name != "bert"] + ["vit"])
def test_masked_tokens_in_front_and_states_that_are_not_masked(model_type: str) -> None:
    """Real tokens may come after masked ones, and `answer_state` shows masked places, too."""
    wishes = other_lengths(model_type)
    for wish in wishes:
        if wish.inputs["message"].shape[1] > 1:
            wish.inputs["message_mask"][0] = wish.inputs["message_mask"][0].flip(0)
            wish.inputs["message_mask"][0, 0] = False
    shown = [Wish(wish.inputs, wish.settings, ("answer", "answer_state")) for wish in wishes]
    assert_alone_and_together(teacher_of(model_type), shown)


@pytest.mark.parametrize("modality", ["text", "ratings", "image"])
def test_served_students(modality: str, tmp_path: Path) -> None:
    teacher = load_teacher(run_folder(tmp_path / "run", modality))
    columns = wire_inputs(columns_of(modality))
    wishes = []
    for rows, width in ((2, 8), (3, 5), (1, 12)):
        inputs = message(rows, 1, width) | {name: value[:rows] for name, value in columns.items()}
        settings = {
            "message_width": width,
            "message_tokens": 1,
            "entry": 1,
            "exit": 3,
            "answer_from": "message_and_input",
        }
        wishes.append(Wish(inputs, settings, ("answer", "teacher_message.exit")))
    assert_alone_and_together(teacher, wishes)


MIXED: list[dict[str, Any]] = [
    {"inject": "replace", "message_width": 4, "codec_depth": 1},
    {"inject": "add", "message_width": 9, "answer_from": "message_and_input"},
    {"inject": "prefix", "message_width": 8, "codec_depth": 3},
    {"inject": "replace", "message_tokens": 4, "pooling": "attention", "answer_from": "message_and_input"},
    {"inject": "prefix", "message_tokens": 4, "pooling": "mean"},
    {"inject": "add", "message_tokens": 4, "pooling": "cls"},
]


def mixed(model_type: str) -> list[Wish]:
    """Every injection, pooling and depth, one span: they meet in one pass of the body."""
    wishes = []
    for place, settings in enumerate(MIXED):
        tokens = settings.get("message_tokens", 4)
        own = tiny_inputs(model_type, 2, 4 if settings["inject"] == "add" else 5)
        if settings["inject"] == "replace" and "message_tokens" not in settings:
            own = tiny_inputs(model_type, 2, 4)
        said = message(2, tokens, settings.get("message_width", 8), seed=place)
        said["message_gate"] = torch.tensor([1.0, 0.25 * place])
        wishes.append(Wish(said | own, settings, (*ABOUT, "hidden.2")))
    return wishes


@pytest.mark.parametrize("model_type", ["bert", "gpt2", "llama", "t5", "mistral"])
def test_mixed_injections_poolings_and_depths(model_type: str) -> None:
    teacher, wishes = teacher_of(model_type), mixed(model_type)
    with Room(teacher, wishes) as room:
        room.run(room.forwards())  # what the teacher knows of x is cached now
        with bodies_run(teacher) as shapes:
            room.run(room.forwards())
        assert sorted(shape[:2] for shape in shapes) == [(4, 9), (8, 4)], "prefixes are longer than the others"
    assert_alone_and_together(teacher, wishes)


def test_what_a_student_gets_holds_no_memory_of_the_others() -> None:
    with Room(teacher_of("bert"), mixed("bert")) as room:
        kept = [value for facts in room.exchange() for value in facts.values()]
        for session in room.actor.sessions.live():
            kept += [grad for grad in session.gathered if grad is not None]
            for _, reply, _ in session.replies._kept.values():
                kept += (reply.outputs if hasattr(reply, "outputs") else reply.grads).values()
    assert all(each.untyped_storage().nbytes() == each.nbytes for each in kept)


def test_several_spans_and_lengths_at_once() -> None:
    """A batch that no policy would form is right all the same: a pass for each span and class of lengths."""
    wishes = [
        Wish(message(2, tokens, 8), {"entry": entry, "exit": exit_})
        for entry, exit_ in ((1, 4), (1, 3), (0, 4))
        for tokens in (3, 20)
    ]
    teacher = teacher_of("bert")
    with Room(teacher, wishes) as room, bodies_run(teacher, 2) as shapes:
        room.run(room.forwards())
        assert len(shapes) == 6
    assert_alone_and_together(teacher, wishes)


def test_ports_of_the_codec_alone_need_no_pass() -> None:
    own = tiny_inputs("bert", 2, 5)
    wishes = [Wish(own, {"message_width": width}, ABOUT[2:]) for width in (3, 8)]
    assert_alone_and_together(teacher_of("bert"), wishes)


def test_both_messages_and_their_reading() -> None:
    wishes = []
    for width in (6, 9):
        said = message(2, 3, width, padded=False) | tiny_inputs("bert", 2, 5)
        settings = {"message_width": width, "message_tokens": 3}
        wishes.append(Wish(said | {"message_exit": said["message"].flip(0)}, settings, ("answer", "cross_consistency")))
    assert_alone_and_together(teacher_of("bert"), wishes)


@pytest.mark.parametrize("model_type", ["bert", "llama", "t5", "vit"])
def test_a_body_in_bfloat16(model_type: str) -> None:
    teacher = FrozenTeacher(copy.deepcopy(tiny_model(model_type)).to(torch.bfloat16), model_type)
    assert_alone_and_together(teacher, other_lengths(model_type), tolerance=0.03)


def test_sixteen_students_and_the_order_they_come_in() -> None:
    wishes = [
        Wish(message(1 + place % 3, 1 + place % 8, 4 + place), {"message_width": 4 + place}) for place in range(16)
    ]
    teacher = teacher_of("bert")
    with Room(teacher, wishes) as room:
        forwards = room.forwards()
        order = torch.randperm(16, generator=torch.Generator().manual_seed(0)).tolist()
        answers = dict(zip(order, room.run([forwards[place] for place in order]), strict=True))
        backwards = {place: wishes[place].backward(forwards[place], answers[place], place) for place in order}
        grads = dict(zip(reversed(order), room.run([backwards[place] for place in reversed(order)]), strict=True))
        found = [room.facts(place, answers[place], grads[place]) for place in range(16)]
    with Room(teacher, wishes) as room:
        for place in range(16):
            assert_same(found[place], room.alone(place))


# What the teacher knows of x


def observe(inputs: dict[str, torch.Tensor], *outputs: str) -> Callable[[Room, int], Any]:
    changes = {"inputs": inputs, "outputs": outputs, "grad_inputs": (), "backward_follows": False}
    return lambda room, place: Wish({}).request(room.callers[place].session, **changes)


def test_observations_of_several_students_are_one_pass_and_a_shared_row_is_computed_once() -> None:
    teacher = teacher_of("bert")
    long, short = tiny_inputs("bert", 3, 9), tiny_inputs("bert", 2, 4)
    asks = [observe(each, "hidden.2", "logits", "pooled") for each in (long, short, long)]
    with Room(teacher, [Wish({})] * 3) as room, bodies_run(teacher) as shapes:
        found = room.run([ask(room, place) for place, ask in enumerate(asks)])
        assert [shape[:2] for shape in shapes] == [(5, 9)]
        assert room.metric("teacher_knowledge_cache_misses_total") == 8
    for each, own in zip(found, (long, short, long), strict=True):
        exact = teacher.states(teacher.prepare(own), [2], with_logits=True, with_pooled=True)
        real = own["attention_mask"][..., None]
        torch.testing.assert_close(each.outputs["hidden.2"], exact["hidden.2"] * real, atol=1e-5, rtol=1e-5)
        for port in ("logits", "pooled"):
            torch.testing.assert_close(each.outputs[port], exact[port], atol=1e-5, rtol=1e-5)


def test_a_decoders_head_finds_the_last_token_of_a_row_that_was_filled_up() -> None:
    model = hf.GPT2ForSequenceClassification(tiny_model("gpt2").config).eval()
    teacher = FrozenTeacher(model, "classifier")
    long, short = tiny_inputs("gpt2", 2, 9), tiny_inputs("gpt2", 2, 4)
    with Room(teacher, [Wish({})] * 2) as room:
        found = room.run([observe(each, "logits")(room, place) for place, each in enumerate((long, short))])
    for each, own in zip(found, (long, short), strict=True):
        exact = teacher.states(teacher.prepare(own), [], with_logits=True)["logits"]
        torch.testing.assert_close(each.outputs["logits"], exact, atol=1e-5, rtol=1e-5)


def test_texts_of_several_students_and_images_too(bert: FrozenTeacher) -> None:
    texts = [text_bytes("good film", "bad"), text_bytes("good film bad film good")]
    with Room(bert, [Wish({})] * 2) as room, bodies_run(bert) as shapes:
        found = room.run([observe({"text": each}, "hidden.4")(room, place) for place, each in enumerate(texts)])
        assert [shape[0] for shape in shapes] == [3]
    for each, text in zip(found, texts, strict=True):
        prepared = bert.prepare({"text": text})
        exact = bert.states(prepared, [4])["hidden.4"] * prepared["attention_mask"][..., None]
        torch.testing.assert_close(each.outputs["hidden.4"], exact, atol=1e-5, rtol=1e-5)
    vit = teacher_of("vit")
    sizes = [torch.randint(0, 255, (2, 3, side, side), dtype=torch.uint8) for side in (10, 40)]
    with Room(vit, [Wish({})] * 2) as room, bodies_run(vit) as shapes:
        found = room.run([observe({"image": each}, "pooled")(room, place) for place, each in enumerate(sizes)])
        assert [shape[0] for shape in shapes] == [4]
    for each, image in zip(found, sizes, strict=True):
        exact = vit.states(vit.prepare({"image": image}), [], with_pooled=True)["pooled"]
        torch.testing.assert_close(each.outputs["pooled"], exact, atol=1e-5, rtol=1e-5)


# Deterministic mode


def test_in_deterministic_mode_nobody_has_a_bucket_and_bits_do_not_depend_on_others() -> None:
    teacher, wishes = teacher_of("bert"), mixed("bert")
    with Room(teacher, wishes, deterministic=True) as room:
        assert {room.job(request).bucket for request in room.forwards()} == {None}
        order = [4, 1, 5, 0, 3, 2]
        crowd = {place: room.alone(place) for place in order}
    for place, wish in enumerate(wishes):
        with Room(teacher, [Wish({})] * place + [wish], deterministic=True) as room:
            for name, value in room.alone(place).items():
                assert torch.equal(value, crowd[place][name]), (place, name)
