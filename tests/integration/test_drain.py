"""What a server that drains still does: its admitted work and what lets students move on; nothing new."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from teacher_server.app import TeacherApp
from teacher_server.config import ServerConfig
from teacher_server.models.split import FrozenTeacher
from teaching_protocol.errors import Draining
from tests.calls import Caller
from tests.integration.gate import poll


@pytest.fixture
def draining(bert: FrozenTeacher) -> Iterator[tuple[str, Caller, threading.Event]]:
    """The address of a server that drains while one admitted call runs, a session it has, and what ends the call."""
    door, busy = threading.Event(), threading.Event()

    def hold(*_: Any) -> None:
        busy.set()
        assert door.wait(20)

    with ThreadPoolExecutor(2) as pool:
        app = TeacherApp(ServerConfig(model="tiny", port=0, metrics_port=-1), bert).start()
        address = f"127.0.0.1:{app.port}"
        ann, bob = Caller(address, "ann").__enter__(), Caller(address, "bob").__enter__()
        hook = bert.family.blocks[-1].register_forward_pre_hook(hold)
        admitted = pool.submit(ann.forward)
        assert busy.wait(20)
        closing = pool.submit(app.close)
        poll(lambda: app.metrics.registry.get_sample_value("teacher_draining"), "the drain begins")
        poll(lambda: app._scheduler._draining, "the queue is closed")
        try:
            yield address, bob, door
        finally:
            door.set()
            assert admitted.result(20)[1].outputs
            closing.result(20)
            hook.remove()
            ann.teacher.close()
            bob.teacher.close()


def test_new_work_is_refused(draining: tuple[str, Caller, threading.Event]) -> None:
    _, bob, _ = draining
    with pytest.raises(Draining, match="the server is shutting down"):
        bob.forward()


def test_no_new_session_is_opened(draining: tuple[str, Caller, threading.Event]) -> None:
    address, *_ = draining
    eve = Caller(address, "eve")
    try:
        with pytest.raises(Draining):
            eve.__enter__()
    finally:
        eve.teacher.close()


def test_a_student_can_take_its_state_along(draining: tuple[str, Caller, threading.Event]) -> None:
    _, bob, door = draining
    with pytest.raises(Draining):
        bob.forward()
    with ThreadPoolExecutor(1) as pool:
        exported = pool.submit(bob.export)
        door.set()
        assert exported.result(20)
