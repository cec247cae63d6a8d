"""One session's calls in this process: exactly once, export and import, memory."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from safetensors.torch import load

from teacher_server.actor import TeacherActor
from teacher_server.local import local_teacher
from teacher_server.models.split import FrozenTeacher
from teaching_protocol import verbs
from teaching_protocol.errors import (
    CallConflict,
    CallFinished,
    NonFiniteError,
    OutOfMemory,
    SessionNotFound,
    StaleCall,
    StateMismatch,
    StepOutOfOrder,
    UnknownCall,
)
from tests.calls import WIDTH, Caller, attempt, backward_request, forward_request, in_s


def actor(bert: FrozenTeacher, **config: Any) -> TeacherActor:
    return local_teacher(bert, **{"max_tokens": 32} | config)


def metric(found: TeacherActor, name: str, **labels: str) -> float:
    return found._metrics.registry.get_sample_value(name, labels) or 0.0


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


def test_late_repeats_of_forward_and_backward_gather_nothing(bert: FrozenTeacher) -> None:
    with Caller(actor(bert, session_replay_bytes=0), "a") as caller:
        forward, _ = caller.forward()
        request = backward_request(forward)
        caller.teacher.backward(request, in_s(5))
        caller.forward()
        once = caller.gathered()
        for repeat, send in ((forward, caller.teacher.forward), (request, caller.teacher.backward)):
            attempt(lambda send=send, repeat=repeat: send(repeat, in_s(5)))
        assert all(torch.equal(value, once[name]) for name, value in caller.gathered().items())


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
        assert not caller.gathered()


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
        assert not caller.gathered()
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


def test_a_forgotten_call_lets_go_of_its_graph(bert: FrozenTeacher) -> None:
    teacher = actor(bert)
    with Caller(teacher, "a") as caller:
        for _ in range(260):
            caller.forward(inputs={"message": torch.zeros(1, 1, WIDTH)})
        session = teacher.sessions.live()[0]
        assert len(teacher._engine.graphs._kept) <= len(session.calls)


def test_only_errors_of_the_tree_come_out(bert: FrozenTeacher) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("no room")

    with Caller(actor(bert), "a") as caller:
        hook = bert.family.blocks[-1].register_forward_pre_hook(full)
        try:
            with pytest.raises(OutOfMemory):
                caller.forward()
        finally:
            hook.remove()
