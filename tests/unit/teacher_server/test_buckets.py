from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as hf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from teacher_server.models.split import FrozenTeacher
from teaching_protocol import verbs
from tests.calls import WIDTH
from tests.unit.teacher_server.rooms import Room, Wish
from tests.unit.teacher_server.tiny_models import text_bytes, tiny_inputs, tiny_model


def said(rows: int, tokens: int, width: int = WIDTH) -> dict[str, torch.Tensor]:
    return {"message": torch.zeros(rows, tokens, width)}


def one(room: Room, place: int = 0, **changes: Any) -> Any:
    return room.job(room.wishes[place].request(room.callers[place].session, **changes))


PLAIN = Wish(said(2, 3))


@pytest.mark.parametrize(
    ("other", "meet"),
    [
        (Wish(said(5, 7)), True),
        (Wish(said(2, 9)), False),
        (Wish(said(2, 3, 5), {"message_width": 5}), True),
        (Wish(said(2, 3), {"codec_depth": 4}), True),
        (Wish(said(2, 3), {"message_tokens": 3, "pooling": "attention"}), True),
        (Wish(said(2, 3), {"optimizer": verbs.OptimizerSettings("sgd")}), True),
        (Wish(said(2, 3), {"entry": 2}), False),
        (Wish(said(2, 3), {"exit": 3}), False),
        (Wish(said(2, 3) | tiny_inputs("bert", 2, 3), {"inject": "add"}), False),
        (Wish(tiny_inputs("bert", 2, 3), {}, ("teacher_message.exit",)), False),
        (Wish(said(2, 3) | tiny_inputs("bert", 2, 3), {}, ("answer", "state_consistency")), False),
        (Wish(said(2, 3), {}, ("answer_state",)), True),
    ],
)
def test_forwards_that_meet(bert: FrozenTeacher, other: Wish, meet: bool) -> None:
    with Room(bert, [PLAIN, other]) as room:
        assert (one(room, 0).bucket == one(room, 1).bucket) is meet
        assert one(room, 0).bucket is not None


def test_observations_meet_by_their_ports_and_lengths(bert: FrozenTeacher) -> None:
    def bucket(room: Room, *outputs: str, tokens: int = 5, **inputs: torch.Tensor) -> Any:
        given_ = inputs or tiny_inputs("bert", 2, tokens)
        return one(room, inputs=given_, outputs=outputs, grad_inputs=(), backward_follows=False).bucket

    with Room(bert, [PLAIN]) as room:
        assert bucket(room, "logits", "pooled") == bucket(room, "pooled", "logits.top3", tokens=8)
        assert bucket(room, "logits") != bucket(room, "pooled")
        assert bucket(room, "pooled") != bucket(room, "pooled", tokens=9)
        assert bucket(room, "pooled", text=text_bytes("good film")) == bucket(room, "pooled")
        assert bucket(room, "pooled") != one(room).bucket


def test_evaluation_and_training_do_not_meet(bert: FrozenTeacher) -> None:
    with Room(bert, [PLAIN]) as room:
        assert one(room).bucket != one(room, backward_follows=False, grad_inputs=()).bucket


@pytest.mark.parametrize(
    ("settings_", "inputs", "outputs", "tokens"),
    [
        ({}, said(2, 3), ("answer",), 6),
        ({}, said(2, 3) | tiny_inputs("bert", 2, 7), ("answer", "teacher_message.enter"), 6),
        ({"inject": "add"}, said(2, 1) | tiny_inputs("bert", 2, 7), ("answer",), 14),
        ({"inject": "prefix"}, said(2, 3) | tiny_inputs("bert", 2, 7), ("answer",), 20),
        ({}, tiny_inputs("bert", 2, 7), ("teacher_message.enter",), 14),
        ({}, {"text": text_bytes("good film bad film", "bad")}, ("teacher_message.enter",), 12),
    ],
)
def test_rows_and_tokens_of_a_forward_and_its_backward(
    bert: FrozenTeacher,
    settings_: dict[str, Any],
    inputs: dict[str, torch.Tensor],
    outputs: tuple[str, ...],
    tokens: int,
) -> None:
    with Room(bert, [Wish(inputs, settings_, outputs)]) as room:
        (forward,) = room.forwards()
        job = room.job(forward)
        grads = {"answer": torch.zeros(2, 1, WIDTH)}  # pooled: smaller than what the body saw
        back = room.job(verbs.BackwardRequest(forward.session, "b", forward.call_id, grads))
        assert (job.rows, job.tokens) == (back.rows, back.tokens) == (2, tokens)
        assert back.bucket == ("Backward", job.bucket)


def test_what_runs_alone(bert: FrozenTeacher) -> None:
    with Room(bert, [PLAIN, PLAIN]) as room:
        session = room.callers[0].session
        assert room.job(verbs.ExportRequest(session)).bucket is None
        assert room.job(verbs.ImportRequest(session, b"")).bucket is None
        unknown = room.job(verbs.BackwardRequest(session, "b", "never made", {"answer": torch.zeros(2, 3, WIDTH)}))
        assert (unknown.bucket, unknown.rows, unknown.tokens) == (None, 0, 0)
        steps = [room.job(verbs.StepRequest(caller.session, 1)) for caller in room.callers]
        assert steps[0].bucket == steps[1].bucket is not None
    with Room(bert, [PLAIN], deterministic=True) as room:
        job = one(room)
        assert (job.bucket, job.rows, job.tokens) == (None, 2, 6)
        assert room.job(verbs.StepRequest(room.callers[0].session, 1)).bucket is None


def test_grids_meet_only_at_equal_lengths_and_images_have_their_tokens() -> None:
    resnet = FrozenTeacher(tiny_model("resnet"), "resnet")
    with Room(
        resnet, [Wish(said(2, 16), {"exit": 3}), Wish(said(3, 16), {"exit": 3}), Wish(said(1, 9), {"exit": 3})]
    ) as room:
        buckets = [one(room, place).bucket for place in range(3)]
        assert buckets[0] == buckets[1] != buckets[2]
        image = {"image": torch.zeros(2, 3, 40, 40, dtype=torch.uint8)}
        job = one(room, inputs=image, outputs=("pooled",), grad_inputs=(), backward_follows=False)
        assert job.tokens == 2 * min(32, resnet.states(resnet.prepare(image), [0])["hidden.0"].shape[1])


@pytest.mark.parametrize(("rope_type", "takes_padding"), [("default", True), ("linear", True), ("dynamic", False)])
def test_a_rotation_that_depends_on_the_batchs_length_takes_no_padding(rope_type: str, takes_padding: bool) -> None:
    config = tiny_model("llama").config
    config.rope_parameters = {"rope_type": rope_type, "rope_theta": 10000.0, "factor": 2.0}
    llama = FrozenTeacher(hf.LlamaModel(config), "llama")
    assert llama.family.takes_padding is takes_padding
    with Room(llama, [Wish(said(2, 3)), Wish(said(2, 4)), Wish(said(1, 3))]) as room:
        buckets = [one(room, place).bucket for place in range(3)]
    assert buckets[0] == buckets[2]
    assert (buckets[0] == buckets[1]) is takes_padding


def test_notes_of_forwards_do_not_pile_up(bert: FrozenTeacher) -> None:
    with Room(bert, [PLAIN]) as room:
        for place in range(300):
            one(room, call_id=f"call-{place}")
        (session,) = room.actor.sessions.live()
        assert len(session.extents) == 256
        assert "call-299" in session.extents
        assert "call-0" not in session.extents


lengths = st.integers(1, 30)
wishes = st.builds(
    lambda tokens, width, rows, depth, entry: Wish(
        said(rows, tokens, width), {"message_width": width, "codec_depth": depth, "entry": entry}
    ),
    lengths, st.integers(1, 9), st.integers(1, 4), st.integers(1, 3), st.integers(0, 2),
)  # fmt: skip


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(wishes, min_size=2, max_size=5))
def test_who_meets_is_padded_to_at_most_half_as_much_again_or_eight(bert: FrozenTeacher, students: list[Wish]) -> None:
    with Room(bert, students) as room:
        jobs = [one(room, place) for place in range(len(students))]
    for first, wish in zip(jobs, students, strict=True):
        for second, other in zip(jobs, students, strict=True):
            tokens = sorted(each.inputs["message"].shape[1] for each in (wish, other))
            if first.bucket == second.bucket:
                assert wish.settings["entry"] == other.settings["entry"]
                assert tokens[1] <= max(8, 1.5 * tokens[0])
            elif tokens[0] == tokens[1]:
                assert wish.settings["entry"] != other.settings["entry"]
