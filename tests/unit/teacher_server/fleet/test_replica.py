"""One teacher of a fleet over real gRPC: what it tells students while the directory answers, and when nobody does any more."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from student_client import RemoteTeacher
from student_client.connection.credentials import Credentials
from student_client.connection.pinning import ranked
from student_client.connection.resolving import resolve
from teacher_server.config import ServerConfig
from teacher_server.fleet.registry import Registry, Report
from teacher_server.fleet.replica import FleetTeacher
from teaching_protocol.directory import Replica
from teaching_protocol.errors import TeachingError
from tests.calls import WIDTH
from tests.integration.gate import poll

NAMES = ("replica-0", "replica-1")


class Head:
    """The directory, which may go away with all it knows."""

    def __init__(self) -> None:
        self.registry, self.is_gone = Registry(3.0), False

    def exchange(self, report: Report) -> tuple[Replica, ...]:
        if self.is_gone:
            raise ConnectionError("nobody is there")
        return self.registry.take(report, time.monotonic())


def told(teacher: FleetTeacher) -> dict[str, str]:
    """Whom it tells students of, with their states."""
    found = resolve(teacher.report.address, Credentials(), 5.0)
    assert found is not None
    return {each.name: each.state for each in found}


def test_the_head_is_lost_and_students_still_find_each_replica(model_folder: Callable[[str], Path]) -> None:
    """They know one address: a replica's. One replica drains afterwards, and its student goes to the other."""
    config = ServerConfig(
        model=str(model_folder("bert")), metrics_port=-1, handoff_s=20.0, threads=1, device="cpu", linger=False
    )
    head = Head()
    with ExitStack() as stack:
        teachers = {name: FleetTeacher(name, config, "127.0.0.1", head.exchange, 0.05).start() for name in NAMES}
        for each in teachers.values():
            stack.callback(each.drain)
            poll(lambda each=each: told(each) == dict.fromkeys(NAMES, "serving"), "each knows both")
        head.is_gone = True
        student = next(name for name in "abcdefgh" if ranked(name, NAMES)[0] == "replica-1")
        here, there = teachers["replica-1"], teachers["replica-0"]
        teacher = RemoteTeacher(there.report.address, student=student, message_width=WIDTH, patience_s=0.5).enroll()
        stack.callback(teacher.leave)
        assert (here.report.sessions, there.report.sessions) == (1, 0)
        state = teacher.export_state()
        teacher.end()
        here.drain()
        try:
            teacher.enroll(state)
        except TeachingError:
            teacher.move_on()
            teacher.enroll(state)
        assert there.report.sessions == 1
        assert there.report.state == "serving"
        assert teacher.export_state() == state
