"""What one student does to itself touches nobody else: poison, replies it does not read, requests it never ends."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
import torch

from teaching_protocol import verbs
from teaching_protocol.errors import NonFiniteError, Quarantined
from tests.calls import WIDTH, Caller, attempt, backward_request, good_step, in_s
from tests.integration.gate import poll
from tests.integration.processes import ROOT, Address, ServerProcess


@pytest.fixture(scope="module")
def isolating(model_folder: Callable[[str], Path]) -> Iterator[dict[str, Address]]:
    """A server whose patience with poison is short, and one with a short lease."""
    configs: dict[str, dict[str, Any]] = {
        "strict": {"alone_strikes": 2, "refused_strikes": 4, "refused_s": 1.0},
        "short": {"lease_s": 3.0, "session_permits": 32},
        "narrow": {"permits": 2},
    }
    process = ServerProcess({name: {"model": str(model_folder("bert"))} | config for name, config in configs.items()})
    yield process.addresses
    assert process.close() == 0


def overflow(caller: Caller) -> None:
    """A Backward whose gradient is finite and overflows in the teacher: it fails in the engine."""
    forward, _ = caller.forward()
    grads = {"answer": torch.full((2, 3, WIDTH), 3e38)}
    caller.teacher.backward(backward_request(forward, grads=grads), in_s(20))


def test_a_poisoner_is_set_apart_and_then_refused(
    isolating: dict[str, Address], expected: dict[str, torch.Tensor]
) -> None:
    server = isolating["strict"]
    with Caller(server.name, "poison") as poison:
        failures = [attempt(lambda: overflow(poison)) for _ in range(4)]
        assert {type(each) for each in failures} == {NonFiniteError}
        assert server.metric("teacher_quarantines_total", kind="alone") == 1
        refusal = poll(lambda: refused(attempt(lambda: overflow(poison))), "it is refused")
        assert re.search("student 'poison' failed, the last with NonFiniteError: .* s more: repair", str(refusal))
        assert 0 < refusal.retry_after_s <= 1.0
        assert server.metric("teacher_quarantines_total", kind="refused") == 1
        assert server.metric("teacher_strikes_total") >= 4
        # what it has it may still take home, and its neighbours are served
        assert poison.export()
        poison.teacher.renew(verbs.RenewRequest(poison.session), in_s(5))
        for name, value in good_step(server.name, "neighbour").items():
            torch.testing.assert_close(value, expected[name], atol=1e-5, rtol=1e-5)
    with Caller(server.name, "poison") as again:  # a new session is no way around it
        poll(lambda: isinstance(attempt(again.forward), tuple), "the refusal ends")


def refused(error: object) -> Quarantined | None:
    return error if isinstance(error, Quarantined) else None


def renewed(caller: Caller) -> float:
    reply: verbs.RenewReply = caller.teacher.renew(verbs.RenewRequest(caller.session), in_s(20))
    return reply.lease_s


def test_a_client_that_stops_reading_holds_up_nobody(isolating: dict[str, Address]) -> None:
    server = isolating["short"]
    command = [sys.executable, "-m", "tests.integration.stalled_student", server.name, "stalled", "24"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as stalled:
        try:
            assert stalled.stdout is not None
            assert stalled.stdout.readline() == "stopping\n"
            with Caller(server.name, "reader") as reader:
                for step in range(1, 41):
                    forward, _ = reader.forward()
                    reader.backward(forward)
                    reader.step(step)
                poll(
                    lambda: renewed(reader) and server.metric("teacher_in_flight") == 0,
                    "the engine is done with the stalled one's calls",
                )
                assert server.metric("teacher_open_calls") > 1, "its replies were all delivered: it did not stall"
                poll(
                    lambda: renewed(reader) and server.metric("teacher_sessions") == 1,
                    "the stalled one's lease ends",
                    40,
                )
        finally:
            stalled.send_signal(signal.SIGKILL)
    poll(lambda: server.metric("teacher_open_calls") == 0, "a dead client's replies are let go")
    assert server.metric("teacher_sessions") == 0
    assert server.metric("teacher_graph_cache_bytes") == 0


def test_requests_that_never_end_hold_up_nobody(
    isolating: dict[str, Address], expected: dict[str, torch.Tensor]
) -> None:
    server, ended = isolating["narrow"], threading.Event()

    def never() -> Iterator[bytes]:
        ended.wait()
        yield from ()

    with grpc.insecure_channel(server.name) as channel:
        begin = channel.stream_unary(
            "/teaching_protocol.v1.Teacher/Forward"
        )  # a call that has begun, without its request
        uploads = [begin.future(never(), timeout=60) for _ in range(60)]
        servers = psutil.Process().children()
        poll(lambda: any(each.num_threads() > 60 for each in servers), "all uploads have begun")
        for name, value in good_step(server.name, "neighbour").items():
            torch.testing.assert_close(value, expected[name], atol=1e-5, rtol=1e-5)
        assert not any(each.done() for each in uploads)
        ended.set()
