"""One session's gradients, steps and observations in this process."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from safetensors.torch import load

from teacher_server.actor import TeacherActor
from teacher_server.local import local_teacher
from teacher_server.models.split import FrozenTeacher
from teaching_protocol import verbs
from teaching_protocol.errors import (
    InputsNeeded,
)
from tests.calls import WIDTH, Caller
from tests.unit.teacher_server.tiny_models import tiny_inputs


def actor(bert: FrozenTeacher, **config: Any) -> TeacherActor:
    return local_teacher(bert, **{"max_tokens": 32} | config)


def metric(found: TeacherActor, name: str, **labels: str) -> float:
    return found._metrics.registry.get_sample_value(name, labels) or 0.0


def both(own: dict[str, torch.Tensor], message: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"message": message, **own}


def test_every_part_of_the_codec_gathers_a_gradient(bert: FrozenTeacher) -> None:
    with Caller(actor(bert), "a", pooling="attention", message_tokens=3, answer_from="message_and_input") as caller:
        inputs = both(tiny_inputs("bert", 2, 6), torch.randn(2, 3, WIDTH))
        forward, _ = caller.forward(inputs=inputs)
        caller.backward(forward, grads={"answer": torch.randn(2, 3, WIDTH)})
        found, names = caller.gathered(), load(caller.export())
    codec = [name for name in names if name.startswith("codec.")]
    assert {name.split(".")[1] for name in codec} == {"encoders", "decoders", "queries"}
    assert len(found) == len(codec)
    assert all(value.abs().sum() > 0 for value in found.values())


def test_the_teacher_is_the_same_to_the_bit_after_twenty_steps(bert: FrozenTeacher) -> None:
    before = FrozenTeacher(bert.model).model_hash
    with Caller(actor(bert), "a", answer_from="message_and_input") as caller:
        answers = []
        for step in range(1, 21):
            inputs = both(tiny_inputs("bert", 2, 3), torch.randn(2, 3, WIDTH))
            forward, reply = caller.forward(inputs=inputs, outputs=("answer", "state_consistency"))
            caller.backward(forward, grads={"answer": torch.randn(2, 3, WIDTH), "state_consistency": torch.tensor(1.0)})
            assert caller.step(step, lr=0.1).step == step
            answers.append(reply.outputs["answer"])
    assert FrozenTeacher(bert.model).model_hash == before == bert.model_hash
    assert not bert.model.training
    assert all(parameter.grad is None for parameter in bert.model.parameters())
    assert not torch.equal(answers[0], answers[-1])


def test_a_recomputed_graph_gives_the_same_bits_as_a_kept_one(bert: FrozenTeacher) -> None:
    found = []
    for config in ({}, {"graph_cache_bytes": 0}, {"session_graph_bytes": 0}):
        teacher = actor(bert, **config)
        with Caller(teacher, "a", answer_from="message_and_input") as caller:
            forward, _ = caller.forward(
                inputs=both(tiny_inputs("bert", 2, 3), torch.arange(48.0).reshape(2, 3, 8).sin())
            )
            grads = caller.backward(forward).grads
            found.append((grads["message"], caller.gathered(), metric(teacher, "teacher_graph_recomputes_total")))
    assert [each[2] for each in found] == [0, 1, 1]
    for message, codec, _ in found[1:]:
        assert torch.equal(message, found[0][0])
        assert codec.keys() == found[0][1].keys()
        assert all(torch.equal(codec[name], found[0][1][name]) for name in codec)


def test_inputs_that_were_let_go_are_asked_for_once(bert: FrozenTeacher) -> None:
    with Caller(actor(bert), "a") as caller:
        forward, _ = caller.forward()
        exact, wanted = caller.backward(forward).grads["message"], caller.gathered()
    with Caller(actor(bert, graph_cache_bytes=0, session_input_bytes=0), "a") as caller:
        forward, _ = caller.forward()
        caller.forward()  # the newest inputs stay, older ones go
        with pytest.raises(InputsNeeded, match="send them again with the Backward"):
            caller.backward(forward)
        assert not caller.gathered()
        again = {"inputs": forward.inputs, "outputs": forward.outputs, "grad_inputs": forward.grad_inputs}
        assert torch.equal(caller.backward(forward, **again).grads["message"], exact)
        assert all(torch.equal(value, wanted[name]) for name, value in caller.gathered().items())


def test_gradients_add_up_until_the_step(bert: FrozenTeacher) -> None:
    def run(*numbers: float) -> dict[str, torch.Tensor]:
        with Caller(actor(bert), "a") as caller:
            for number in numbers:
                forward, _ = caller.forward(inputs={"message": (torch.arange(24.0).reshape(1, 3, 8) * number).sin()})
                caller.backward(forward, grads={"answer": torch.full((1, 3, 8), number).cumsum(2)})
            return caller.gathered()

    one, other, together = run(1.0), run(-2.0), run(1.0, -2.0)
    for name, value in together.items():
        assert torch.equal(value, one[name] + other[name])


def test_the_step_is_the_optimizers(bert: FrozenTeacher) -> None:
    settings = verbs.OptimizerSettings("sgd", weight_decay=0.0)
    with Caller(actor(bert), "a", optimizer=settings) as caller:
        caller.backward(caller.forward()[0])
        before = load(caller.export())
        norm = torch.stack([value.norm() for name, value in before.items() if name.startswith("gathered.")]).norm()
        reply = caller.step(1, lr=0.5, grad_scale=0.25, max_grad_norm=float(norm) / 8)
        after = load(caller.export())
    assert reply.grad_norm == pytest.approx(float(norm) / 4, rel=1e-5)
    names = [name for name in before if name.startswith("codec.")]
    moved = torch.cat([(before[name] - after[name]).flatten() for name in names])
    assert float(moved.norm()) == pytest.approx(0.5 * float(norm) / 8, rel=1e-3)


# What is known already


def test_the_second_observation_does_not_reach_the_engine(bert: FrozenTeacher) -> None:
    teacher = actor(bert)
    ask = {"inputs": tiny_inputs("bert", 2, 5), "outputs": ("logits", "hidden.2", "pooled", "logits.top2"),
           "grad_inputs": (), "backward_follows": False}  # fmt: skip
    runs = "teacher_compute_seconds_count"
    with Caller(teacher, "a") as one, Caller(teacher, "b") as other:
        first = one.forward(**ask)[1].outputs
        assert metric(teacher, runs, method="Forward") == 1
        second = other.forward(**ask)[1].outputs
        assert metric(teacher, runs, method="Forward") == 1
    assert all(torch.equal(first[port], second[port]) for port in first)
    exact = bert.states(bert.prepare(tiny_inputs("bert", 2, 5)), [2], with_logits=True)
    torch.testing.assert_close(first["logits"], exact["logits"], atol=1e-5, rtol=1e-5)
    values, places = exact["logits"].topk(2)
    torch.testing.assert_close(first["logits.top2"][:, 0], values, atol=1e-5, rtol=1e-5)
    assert torch.equal(first["logits.top2"][:, 1], places.float())


def test_a_miss_is_counted_once(bert: FrozenTeacher) -> None:
    teacher = actor(bert)
    with Caller(teacher, "a") as caller:
        caller.forward(inputs=tiny_inputs("bert", 2, 5), outputs=("pooled",), grad_inputs=(), backward_follows=False)
    assert metric(teacher, "teacher_knowledge_cache_misses_total") == 2


def test_a_device_without_room_lets_go_of_the_graphs_and_tries_again(bert: FrozenTeacher) -> None:
    teacher = actor(bert)
    full = iter([True, False])

    def room(*_: Any) -> None:
        if next(full):
            raise torch.OutOfMemoryError("no room")

    with Caller(teacher, "a") as caller:
        first, before = caller.forward()
        hook = bert.family.blocks[-1].register_forward_pre_hook(room)
        try:
            again = caller.forward()[1]
        finally:
            hook.remove()
        assert torch.equal(again.outputs["answer"], before.outputs["answer"])
        assert metric(teacher, "teacher_graph_cache_evictions_total") == 1
        assert caller.backward(first).grads["message"].abs().sum() > 0
