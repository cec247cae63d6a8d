"""Repeated, foreign, stale and late calls over the wire: no second effect, a typed error, nobody else harmed."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from student_client import RemoteTeacher
from teaching_protocol import verbs
from teaching_protocol.errors import (
    CallConflict,
    CallFinished,
    LeaseExpired,
    SessionNotFound,
    StaleCall,
    StaleEpoch,
    StepOutOfOrder,
    StudentNameTaken,
    UnknownCall,
)
from tests.calls import WIDTH, Caller, backward_request, forward_request, in_s
from tests.integration.gate import poll
from tests.integration.processes import Address


def test_repeated_calls_have_one_effect(servers: dict[str, Address]) -> None:
    with Caller(servers["bert"].name, "once") as caller:
        forward, first = caller.forward()
        again = caller.teacher.forward(forward, in_s(5))
        assert torch.equal(again.outputs["answer"], first.outputs["answer"])
        request = backward_request(forward)
        one = caller.teacher.backward(request, in_s(5)).grads["message"]
        once = caller.export()
        assert torch.equal(caller.teacher.backward(request, in_s(5)).grads["message"], one)
        assert caller.export() == once
        reply = caller.step(1)
        after = caller.export()
        assert caller.step(1) == reply
        assert caller.export() == after != once


def test_calls_that_cannot_be(servers: dict[str, Address]) -> None:
    with Caller(servers["bert"].name, "once") as caller, Caller(servers["bert"].name, "other") as other:
        foreign, _ = other.forward()
        for unknown in (forward_request(caller.session), dataclasses.replace(foreign, session=caller.session)):
            with pytest.raises(UnknownCall):
                caller.backward(unknown)
        forward, _ = caller.forward()
        caller.backward(forward)
        with pytest.raises(CallFinished):
            caller.backward(forward)
        with pytest.raises(CallConflict):
            caller.forward(call_id=forward.call_id, inputs={"message": torch.zeros(1, 1, WIDTH)})
        stale, _ = caller.forward()
        with pytest.raises(StepOutOfOrder, match="step 2 was sent, but the session's next step is 1"):
            caller.step(2)
        caller.step(1)
        with pytest.raises(StaleCall):
            caller.backward(stale)
        for ref in (verbs.SessionRef("0" * 32, 1), verbs.SessionRef()):
            with pytest.raises(SessionNotFound):
                caller.forward(session=ref)
        assert other.backward(foreign).grads["message"].abs().sum() > 0


def test_one_live_session_a_name(servers: dict[str, Address]) -> None:
    name = servers["bert"].name
    sentence = "'same' has a live session .its lease ends in .* s.; choose another name, wait, or resume"
    with Caller(name, "same"), pytest.raises(StudentNameTaken, match=sentence):
        RemoteTeacher(name, student="same", message_width=WIDTH).enroll()
    with Caller(name, "same"):
        pass  # free again


def test_a_resumed_session_fences_the_older_client_off(servers: dict[str, Address]) -> None:
    with Caller(servers["bert"].name, "resumed") as old:
        forward, _ = old.forward()
        old.backward(forward)
        new = Caller(servers["bert"].name, "resumed")
        request = verbs.EnrollRequest("resumed", resume=old.session.session_id)
        reply = new.teacher.enroll(request, in_s(5))
        new.session = reply.session
        assert (reply.session.session_id, reply.session.epoch) == (old.session.session_id, 2)
        for call in (old.forward, old.export, lambda: old.step(1)):
            with pytest.raises(StaleEpoch, match="another client resumed it"):
                call()
        assert new.step(1).grad_norm > 0  # what the old client had gathered is there
        stranger = verbs.EnrollRequest("stranger", resume=old.session.session_id)
        with pytest.raises(SessionNotFound, match="not one of student 'stranger'"):
            new.teacher.enroll(stranger, in_s(5))
        new.teacher.close()
        old.session = reply.session


def test_a_lease_that_ran_out(servers: dict[str, Address]) -> None:
    server = servers["short_lease"]
    silent = Caller(server.name, "silent").__enter__()
    silent.forward()
    assert server.metric("teacher_graph_cache_bytes") > 0
    with RemoteTeacher(server.name, student="beating", message_width=WIDTH) as beating:
        ended = ("teacher_session_ends_total", (("cause", "lease"),))
        poll(lambda: server.metrics().get(ended), "the lease runs out")
        with pytest.raises(LeaseExpired, match="enrol again and import your last exported state"):
            silent.forward()
        assert server.metric("teacher_graph_cache_bytes") == 0
        assert server.metric("teacher_sessions") == 1  # the one whose client sends heartbeats
        assert beating(torch.zeros(1, 2, WIDTH)).shape == (1, 2, WIDTH)
        with Caller(server.name, "silent") as again:
            assert again.forward()[1].outputs
    silent.teacher.close()


def test_inputs_let_go_are_sent_again_unseen(servers: dict[str, Address]) -> None:
    found = []
    for name in ("bert", "forgetful"):
        server = servers[name]
        with RemoteTeacher(server.name, student="again", compression="none", message_width=WIDTH) as teacher:
            messages = [torch.full((1, 2, WIDTH), float(n)).cumsum(2).requires_grad_() for n in range(1, 4)]
            answers = [teacher(message) for message in messages]
            torch.stack(answers).pow(3).sum().backward()
            teacher.step(0.1)
            found.append([message.grad for message in messages] + [teacher(messages[0]).detach()])
    assert servers["forgetful"].metric("teacher_graph_recomputes_total") >= 3
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_memory_returns_after_leave(servers: dict[str, Address]) -> None:
    server = servers["forgetful"]
    before = server.metric("teacher_sessions"), server.metric("teacher_graph_cache_bytes")
    with Caller(server.name, "leaving") as caller:
        caller.forward()
        assert server.metric("teacher_sessions") == before[0] + 1
    assert (server.metric("teacher_sessions"), server.metric("teacher_graph_cache_bytes")) == before
