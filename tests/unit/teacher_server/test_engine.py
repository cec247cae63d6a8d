"""One session's calls in this process: gradients, exactly once, memory, what is known already."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from safetensors.torch import load

from teacher_server.actor import TeacherActor
from teacher_server.local import local_teacher
from teacher_server.split import FrozenTeacher
from teaching_protocol import verbs
from teaching_protocol.errors import (
    CallConflict,
    CallFinished,
    InputsNeeded,
    NonFiniteError,
    SessionNotFound,
    StaleCall,
    StateMismatch,
    StepOutOfOrder,
    UnknownCall,
)
from tests.calls import WIDTH, Caller, backward_request, forward_request, in_s
from tests.unit.teacher_server.tiny_models import tiny_inputs


def actor(bert: FrozenTeacher, **config: Any) -> TeacherActor:
    return local_teacher(bert, **{"max_tokens": 32} | config)


def gathered(caller: Caller) -> dict[str, torch.Tensor]:
    return {name: value for name, value in load(caller.export()).items() if name.startswith("gathered.")}


def metric(found: TeacherActor, name: str, **labels: str) -> float:
    return found._metrics.registry.get_sample_value(name, labels) or 0.0


def both(own: dict[str, torch.Tensor], message: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"message": message, **own}


def test_every_part_of_the_codec_gathers_a_gradient(bert: FrozenTeacher) -> None:
    with Caller(actor(bert), "a", pooling="attention", message_tokens=3, answer_from="message_and_input") as caller:
        inputs = both(tiny_inputs("bert", 2, 6), torch.randn(2, 3, WIDTH))
        forward, _ = caller.forward(inputs=inputs)
        caller.backward(forward, grads={"answer": torch.randn(2, 3, WIDTH)})
        found, names = gathered(caller), load(caller.export())
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
            forward, _ = caller.forward(inputs=both(tiny_inputs("bert", 2, 3), torch.arange(48.0).reshape(2, 3, 8).sin()))
            grads = caller.backward(forward).grads
            found.append((grads["message"], gathered(caller), metric(teacher, "teacher_graph_recomputes_total")))
    assert [each[2] for each in found] == [0, 1, 1]
    for message, codec, _ in found[1:]:
        assert torch.equal(message, found[0][0])
        assert codec.keys() == found[0][1].keys()
        assert all(torch.equal(codec[name], found[0][1][name]) for name in codec)


def test_inputs_that_were_let_go_are_asked_for_once(bert: FrozenTeacher) -> None:
    with Caller(actor(bert), "a") as caller:
        forward, _ = caller.forward()
        exact, wanted = caller.backward(forward).grads["message"], gathered(caller)
    with Caller(actor(bert, graph_cache_bytes=0, session_input_bytes=0), "a") as caller:
        forward, _ = caller.forward()
        caller.forward()  # the newest inputs stay, older ones go
        with pytest.raises(InputsNeeded, match="send them again with the Backward"):
            caller.backward(forward)
        assert not gathered(caller)
        again = {"inputs": forward.inputs, "outputs": forward.outputs, "grad_inputs": forward.grad_inputs}
        assert torch.equal(caller.backward(forward, **again).grads["message"], exact)
        assert all(torch.equal(value, wanted[name]) for name, value in gathered(caller).items())


def test_gradients_add_up_until_the_step(bert: FrozenTeacher) -> None:
    def run(*numbers: float) -> dict[str, torch.Tensor]:
        with Caller(actor(bert), "a") as caller:
            for number in numbers:
                forward, _ = caller.forward(inputs={"message": (torch.arange(24.0).reshape(1, 3, 8) * number).sin()})
                caller.backward(forward, grads={"answer": torch.full((1, 3, 8), number).cumsum(2)})
            return gathered(caller)

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


# Exactly once


def test_a_repeated_backward_gets_the_same_reply_and_gathers_once(bert: FrozenTeacher) -> None:
    with Caller(actor(bert), "a") as caller:
        forward, first = caller.forward()
        repeated = caller.teacher.forward(forward, in_s(5))
        assert torch.equal(repeated.outputs["answer"], first.outputs["answer"])
        request = backward_request(forward)
        one = caller.teacher.backward(request, in_s(5))
        once = caller.export()
        other = caller.teacher.backward(request, in_s(5))
        assert torch.equal(one.grads["message"], other.grads["message"])
        assert caller.export() == once
        with pytest.raises(CallFinished, match="a graph serves one Backward"):
            caller.backward(forward)


def test_a_repeated_step_is_one_step(bert: FrozenTeacher) -> None:
    with Caller(actor(bert), "a") as caller:
        caller.backward(caller.forward()[0])
        first = caller.step(1)
        once = caller.export()
        assert caller.step(1) == first
        assert caller.export() == once
        with pytest.raises(CallConflict):
            caller.step(1, lr=0.5)
        for wrong in (0, 3, -1):
            with pytest.raises(StepOutOfOrder, match=f"step {wrong} was sent, but the session's next step is 2"):
                caller.step(wrong)
        assert caller.export() == once


def test_a_call_id_used_again_with_another_body(bert: FrozenTeacher) -> None:
    with Caller(actor(bert), "a") as caller:
        forward, _ = caller.forward()
        with pytest.raises(CallConflict, match="give each call an id of its own"):
            caller.forward(call_id=forward.call_id, inputs={"message": torch.zeros(1, 1, WIDTH)})
        request = backward_request(forward)
        caller.teacher.backward(request, in_s(5))
        once = caller.export()
        with pytest.raises(CallConflict):
            caller.backward(forward, call_id=request.call_id, grads={"answer": torch.zeros(2, 3, WIDTH)})
        assert caller.export() == once


@pytest.mark.xfail(strict=True, reason="a Forward repeated after its reply was let go opens its call again")
def test_late_repeats_of_forward_and_backward_gather_nothing(bert: FrozenTeacher) -> None:
    with Caller(actor(bert, session_replay_bytes=0), "a") as caller:
        forward, _ = caller.forward()
        request = backward_request(forward)
        caller.teacher.backward(request, in_s(5))
        caller.forward()
        once = gathered(caller)
        for repeat, send in ((forward, caller.teacher.forward), (request, caller.teacher.backward)):
            try:
                send(repeat, in_s(5))
            except (CallFinished, CallConflict):
                pass
        assert all(torch.equal(value, once[name]) for name, value in gathered(caller).items())


def test_backward_for_calls_that_have_none(bert: FrozenTeacher) -> None:
    teacher = actor(bert)
    with Caller(teacher, "a") as caller, Caller(teacher, "b") as stranger:
        foreign, _ = stranger.forward()
        observed, _ = caller.forward(backward_follows=False, grad_inputs=())
        for request in (forward_request(caller.session), foreign, observed):
            with pytest.raises(UnknownCall, match=f"no Forward '{request.call_id}' with backward_follows"):
                caller.backward(request, session=caller.session)
        with pytest.raises(SessionNotFound):
            caller.backward(foreign, session=verbs.SessionRef("guess", 1))
        stale, _ = caller.forward()
        caller.step(1)
        with pytest.raises(StaleCall, match="made before the session's step 1; do Backward before Step"):
            caller.backward(stale)
        assert not gathered(caller)


def test_a_stale_call_after_an_import(bert: FrozenTeacher) -> None:
    with Caller(actor(bert), "a") as caller:
        blob = caller.export()
        forward, _ = caller.forward()
        caller.teacher.import_(verbs.ImportRequest(caller.session, blob), in_s(5))
        with pytest.raises(StaleCall):
            caller.backward(forward)


def test_an_overflowing_backward_can_be_sent_again(bert: FrozenTeacher) -> None:
    with Caller(actor(bert), "a") as caller:
        forward, _ = caller.forward()
        with pytest.raises(NonFiniteError, match="were not applied; lower the loss scale"):
            caller.backward(forward, grads={"answer": torch.full((2, 3, WIDTH), 3e38).cumsum(2).clamp(max=3e38)})
        assert not gathered(caller)
        assert caller.backward(forward).grads["message"].isfinite().all()


# Export and import


def test_an_exported_session_continues_bit_for_bit_elsewhere(bert: FrozenTeacher) -> None:
    def train(caller: Caller, first: int, last: int) -> None:
        for step in range(first, last + 1):
            generator = torch.Generator().manual_seed(step)
            inputs = {"message": torch.randn(2, 3, WIDTH, generator=generator)}
            caller.backward(caller.forward(inputs=inputs)[0])
            caller.step(step)

    with Caller(actor(bert), "a") as unbroken, Caller(actor(bert), "b", seed=7) as other:
        train(unbroken, 1, 3)
        blob = unbroken.export()
        train(unbroken, 4, 6)
        assert other.teacher.import_(verbs.ImportRequest(other.session, blob), in_s(5)).step == 3
        train(other, 4, 6)
        one, two = load(unbroken.export()), load(other.export())
        assert all(torch.equal(value, two[name]) for name, value in one.items())
        assert one.keys() == two.keys()


def test_enrolling_with_a_state_is_enrolling_and_importing(bert: FrozenTeacher) -> None:
    teacher = actor(bert)
    with Caller(teacher, "a") as caller:
        caller.backward(caller.forward()[0])
        caller.step(1)
        blob, settings = caller.export(), caller.settings
        reply = teacher.enroll(verbs.EnrollRequest("b", settings, state=blob), in_s(5))
        assert reply.step == 1
        assert teacher.export(verbs.ExportRequest(reply.session), in_s(5)).state == blob
        with pytest.raises(StateMismatch):
            teacher.enroll(verbs.EnrollRequest("c", settings, state=blob[:50]), in_s(5))
        assert [each.student for each in teacher.sessions.live()] == ["a", "b"]


# Memory


def test_memory_returns_after_leave(bert: FrozenTeacher) -> None:
    teacher = actor(bert)
    caller = Caller(teacher, "a").__enter__()
    for _ in range(3):
        caller.forward()
    graphs = teacher._engine.graphs
    assert graphs.size_bytes > 0
    held = weakref.ref(teacher.sessions.live()[0].codec)
    caller.__exit__()
    gc.collect()
    assert (graphs.size_bytes, len(teacher.sessions), held()) == (0, 0, None)
    assert metric(teacher, "teacher_graph_cache_bytes") == 0
    assert metric(teacher, "teacher_sessions") == 0
    assert metric(teacher, "teacher_session_ends_total", cause="leave") == 1
    with pytest.raises(SessionNotFound, match="it left"):
        caller.forward()


def test_memory_returns_after_backward_and_step(bert: FrozenTeacher) -> None:
    teacher = actor(bert)
    with Caller(teacher, "a") as caller:
        forward, _ = caller.forward()
        caller.forward()
        caller.backward(forward)
        one = teacher._engine.graphs.size_bytes
        caller.step(1)
        session = teacher.sessions.live()[0]
        assert one > 0
        assert teacher._engine.graphs.size_bytes == 0
        assert all(call.request is None for call in session.calls.values())
        assert all(parameter.grad is None for parameter in session.parameters())


@pytest.mark.xfail(strict=True, reason="graphs of calls beyond the 256 remembered stay until the Step")
def test_a_forgotten_call_lets_go_of_its_graph(bert: FrozenTeacher) -> None:
    teacher = actor(bert)
    with Caller(teacher, "a") as caller:
        for _ in range(260):
            caller.forward(inputs={"message": torch.zeros(1, 1, WIDTH)})
        session = teacher.sessions.live()[0]
        assert len(teacher._engine.graphs._kept) <= len(session.calls)


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


@pytest.mark.xfail(strict=True, reason="actor.forward asks the cache first, and the engine asks it again: counted twice")
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
