"""A fleet's supervisor over real teachers in this process, where Ray would start processes; and over hosts that fail in every way."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from student_client import RemoteTeacher
from teacher_server.config import ServerConfig
from teacher_server.fleet.port import DirectoryPort
from teacher_server.fleet.registry import Registry, Report
from teacher_server.fleet.replica import FleetTeacher
from teacher_server.fleet.scaling import Bounds, Scaling
from teacher_server.fleet.supervisor import Limits, Supervisor
from teaching_protocol.directory import Replica
from teaching_protocol.errors import Draining, ServiceError
from teaching_protocol.threads import side_threads
from tests.calls import WIDTH
from tests.integration.gate import poll
from tests.unit.teacher_server.fleet.test_registry import report


class Here:
    """The directory of this process."""

    def __init__(self) -> None:
        self.registry = Registry(3.0)

    def reports(self) -> Mapping[str, tuple[Report, float]]:
        return self.registry.reports(time.monotonic())

    def asked(self) -> frozenset[str]:
        return self.registry.asked

    def forget(self, name: str) -> None:
        self.registry.forget(name)

    def exchange(self, own: Report) -> tuple[Replica, ...]:
        return self.registry.take(own, time.monotonic())


class Thread:
    """A real teacher, with what a supervisor asks of a process."""

    def __init__(self, name: str, config: ServerConfig, here: Here) -> None:
        self.teacher = FleetTeacher(name, config, "127.0.0.1", here.exchange, 0.05)
        self._pool = side_threads(2, name)
        self._begun, self._drained = self._pool.submit(self.teacher.start), None

    def ended(self) -> str | None:
        self._begun.done() and self._begun.result()
        return "" if self._drained is not None and self._drained.done() else None

    def drain(self) -> None:
        self._drained = self._pool.submit(self.teacher.drain)

    def kill(self) -> None:
        self.drain()


class Threads:
    def __init__(self, config: ServerConfig, here: Here) -> None:
        self._config, self._here = config, here
        self.begun: dict[str, Thread] = {}

    def begin(self, name: str) -> Thread:
        self.begun[name] = Thread(name, self._config, self._here)
        return self.begun[name]

    def lack(self) -> str:
        return ""


class World:
    def __init__(self, model: Path, bounds: Bounds, count: int) -> None:
        self.config = ServerConfig(model=str(model), metrics_port=-1, handoff_s=10.0, threads=1, device="cpu")
        self.here = Here()
        self.hosts = Threads(self.config, self.here)
        self.supervisor = Supervisor(self.hosts, self.here, Scaling(bounds, count))
        ports = self.config.model_copy(update={"port": 0})
        self.port = DirectoryPort(ports, lambda: self.here.registry.listing(time.monotonic()))

    @property
    def serving(self) -> list[str]:
        return sorted(each.name for each in self.supervisor.serving)

    def until(self, condition: Callable[[], Any], what: str) -> None:
        def turned() -> Any:
            self.supervisor.turn()
            return condition()

        poll(turned, what, 60.0)


STEADY = Bounds(1, 4, 1e9, 0.0, 0.0, 0.0)


@pytest.fixture
def world(model_folder: Callable[[str], Path]) -> Iterator[Callable[..., World]]:
    made: list[World] = []

    def build(bounds: Bounds = STEADY, count: int = 2) -> World:
        made.append(World(model_folder("bert"), bounds, count))
        return made[-1]

    yield build
    for each in made:
        each.supervisor.end(20.0)


def test_one_more_begins_and_takes_its_students_and_one_leaves_again(
    world: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calls that wait at all are too many here: a second teacher joins, and a student that belongs there moves."""
    monkeypatch.setattr("teacher_server.fleet.replica._WINDOW_S", 2.0)
    found = world(Bounds(least=1, most=2, up_s=1e-9, down_s=1e-12, up_after_s=0.0, down_after_s=0.0), 1)
    found.until(lambda: found.serving == ["replica-0"], "one serves")
    assert found.supervisor.is_complete
    message = torch.ones(1, 2, WIDTH)
    with found.port as port:
        teachers = [
            RemoteTeacher(f"127.0.0.1:{port.port}", student=name, message_width=WIDTH).enroll() for name in "abcdef"
        ]
        for teacher in teachers:
            teacher.forward(message)
        found.until(lambda: found.serving == ["replica-0", "replica-1"], "two serve")
        moving = [teacher for teacher in teachers if teacher.has_better_place()]
        assert 0 < len(moving) < len(teachers)
        for teacher in moving:
            state = teacher.export_state()
            teacher.move_if_better()
            teacher.describe()
            teacher.enroll(state)
        found.until(
            lambda: {each.name: each.sessions for each in found.supervisor.serving}["replica-1"] == len(moving), "moved"
        )
        for teacher in teachers:
            teacher.leave()
    # nobody calls any more: the mean of the last seconds falls to nothing
    found.until(lambda: len(found.serving) == 1, "one is enough")


def test_a_replica_is_replaced_and_its_student_told_to_go(world: Callable[..., World]) -> None:
    found = world(count=1)
    found.until(lambda: found.serving == ["replica-0"], "one serves")
    with found.port as port:
        teacher = RemoteTeacher(f"127.0.0.1:{port.port}", student="ann", message_width=WIDTH, patience_s=0.2).enroll()

        def ask() -> None:
            with torch.no_grad():  # or its step would be begun, which a drain lets end
                teacher.forward(torch.ones(1, 2, WIDTH))

        assert found.here.registry.ask_to_replace("replica-0")
        found.supervisor.turn()
        found.supervisor.turn()
        assert found.serving == ["replica-0"], "not before the other one serves"
        ask()
        found.until(lambda: found.serving == ["replica-1"], "the other one serves")

        def is_sent_away() -> bool:
            try:
                ask()
            except Draining:
                return True
            return False

        poll(is_sent_away, "its student is sent away")
        state = teacher.export_state()
        teacher.end()
        teacher.move_on()
        teacher.enroll(state)
        found.until(lambda: found.supervisor.serving[0].sessions == 1, "it is there")
        found.until(lambda: found.hosts.begun["replica-0"].ended() == "", "the drained one has ended")
        teacher.leave()


@dataclass
class Broken:
    """A host's process of which a test says how it fares."""

    name: str
    reason: str | None = None
    killed: bool = False

    def ended(self) -> str | None:
        return self.reason

    def drain(self) -> None:
        self.reason = ""

    def kill(self) -> None:
        self.killed = True


@dataclass
class Fates:
    begun: list[Broken] = field(default_factory=list)
    reason: str | None = None
    room: int = 1_000_000

    def lack(self) -> str:
        there = [each for each in self.begun if each.reason is None and not each.killed]
        return "each wants 1 GPU, free are 0" if len(there) > self.room else ""

    def begin(self, name: str) -> Broken:
        self.begun.append(Broken(name, self.reason))
        return self.begun[-1]


def test_replicas_that_never_serve_end_the_fleet_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("teacher_server.fleet.supervisor.time.monotonic", lambda: now)
    hosts, said = Fates(reason="no such model"), []
    supervisor = Supervisor(hosts, Here(), Scaling(STEADY, 1), say=said.append)

    def minutes() -> None:
        nonlocal now
        while now < 600:
            now += 1.0
            supervisor.turn()

    with pytest.raises(ServiceError, match="5 replicas in a row failed before any served, the last one: no such model"):
        minutes()
    assert len(hosts.begun) == 5
    assert [sentence.rpartition(" in ")[2] for sentence in said if "lost" in sentence] == [
        "1 s",
        "2 s",
        "4 s",
        "8 s",
        "16 s",
    ]


class Silent(Here):
    """A directory that heard of a replica so many seconds ago."""

    age_s = 0.0

    def reports(self) -> Mapping[str, tuple[Report, float]]:
        return {name: (found, self.age_s) for name, (found, _) in self.registry.reports(0.0).items()}


def test_a_replica_that_says_nothing_is_killed_and_its_place_taken() -> None:
    hosts, directory = Fates(), Silent()
    supervisor = Supervisor(hosts, directory, Scaling(STEADY, 1), Limits(stale_s=3.0, hung_s=30.0))
    supervisor.turn()
    directory.registry.take(report(0), 0.0)
    supervisor.turn()
    assert supervisor.is_complete
    directory.age_s = 10.0
    supervisor.turn()
    assert not supervisor.is_complete
    assert not hosts.begun[0].killed
    directory.age_s = 31.0
    supervisor.turn()
    assert hosts.begun[0].killed
    supervisor.turn()
    assert [each.name for each in hosts.begun] == ["replica-0", "replica-0"]


def test_at_the_end_all_drain_and_who_does_not_is_killed() -> None:
    """One that never served has nobody to send away, and is killed at once: draining it would wait for it to begin."""
    hosts, here = Fates(), Here()
    supervisor = Supervisor(hosts, here, Scaling(STEADY, 3))
    for number in (0, 1, 2):
        supervisor.turn()
        here.registry.take(report(number, state="serving" if number < 2 else "starting"), time.monotonic())
    stuck = hosts.begun[1]
    stuck.drain = lambda: None  # type: ignore[method-assign]
    supervisor.end(0.2)
    assert [each.killed for each in hosts.begun] == [False, True, True]
    assert [each.reason for each in hosts.begun] == ["", None, None]


class Clock:
    """A fleet whose hosts have room for so many, and seconds that pass when a test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, bounds: Bounds, count: int, room: int) -> None:
        self.now = 0.0
        monkeypatch.setattr("teacher_server.fleet.supervisor.time.monotonic", lambda: self.now)
        self.hosts, self.here, self.said = Fates(room=room), Here(), []  # type: ignore[var-annotated]
        limits = Limits(stale_s=1e9, hung_s=1e9, room_s=60.0)
        self.fleet = Supervisor(self.hosts, self.here, Scaling(bounds, count), limits, self.said.append)

    def pass_by(self, seconds: int, queue_s: float = 0.0) -> None:
        for _ in range(seconds):
            self.now += 1.0
            there = [each for each in self.hosts.begun if each.reason is None and not each.killed]
            for each in there[: self.hosts.room]:  # who has room serves at once
                self.here.registry.take(report(int(each.name[-1]), queue_s=queue_s), self.now)
            self.fleet.turn()

    def heard(self, words: str) -> int:
        return sum(words in sentence for sentence in self.said)


def test_a_fleet_that_grows_beyond_its_cluster_says_so_and_makes_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """The third has no room: that is said in seconds, given up in a minute, and not tried again for another."""
    found = Clock(monkeypatch, Bounds(1, 3, 0.5, 0.0, 5.0, 1e9), count=2, room=2)
    found.pass_by(8, queue_s=2.0)
    assert found.fleet.counts == {"wanted": 3, "serving": 2, "waiting": 0, "leaving": 0, "starting": 1}
    found.pass_by(35, queue_s=2.0)
    assert found.fleet.counts["waiting"] == 1
    assert found.heard("replica-2 waits for room: each wants 1 GPU, free are 0") == 1
    assert found.fleet.has_settled
    assert not found.fleet.is_complete
    found.pass_by(30, queue_s=2.0)
    assert found.heard("it is given up, 2 have to do") == 1
    assert found.hosts.begun[2].killed
    assert (found.fleet.counts["wanted"], found.fleet.given_up, found.fleet.is_complete) == (2, 1, True)
    found.pass_by(40, queue_s=2.0)
    assert len(found.hosts.begun) == 3, "not tried again so soon"
    found.hosts.room = 3
    found.pass_by(60, queue_s=2.0)
    assert found.fleet.counts == {"wanted": 3, "serving": 3, "waiting": 0, "leaving": 0, "starting": 0}


def test_the_fewest_go_on_waiting_for_room_and_those_with_room_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Clock(monkeypatch, Bounds(2, 2, 1e9, 0.0, 0.0, 0.0), count=2, room=1)
    found.pass_by(130)
    assert found.heard("fewer than 2 must not be, so it goes on waiting") == 2
    assert found.fleet.has_settled
    assert (found.fleet.given_up, len(found.hosts.begun)) == (0, 2)
    found.hosts.room = 2
    found.pass_by(2)
    assert found.fleet.is_complete


def test_a_fleet_that_finds_no_room_at_all_ends_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Clock(monkeypatch, Bounds(1, 1, 1e9, 0.0, 0.0, 0.0), count=1, room=0)
    with pytest.raises(
        ServiceError,
        match=r"replica-0 has waited 6\d s for its place \(each wants 1 GPU, free are 0\), and no other serves",
    ):
        found.pass_by(100)


def test_who_is_replaced_goes_first_where_there_is_no_room_for_both(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the replacement would wait for the GPU of the one that waits for it to serve."""
    found = Clock(monkeypatch, Bounds(2, 2, 1e9, 0.0, 0.0, 0.0), count=2, room=2)
    found.pass_by(3)
    assert found.here.registry.ask_to_replace("replica-1")
    found.pass_by(5)
    assert found.hosts.begun[1].reason is None, "its replacement may have room of its own"
    found.pass_by(40)
    assert found.hosts.begun[1].reason == "", "it has drained"
    assert found.fleet.is_complete
    assert [each.name for each in found.fleet.serving] == ["replica-0", "replica-2"]


def test_a_teacher_that_loads_for_long_is_not_taken_for_a_hung_one() -> None:
    hosts, directory = Fates(), Silent()
    supervisor = Supervisor(hosts, directory, Scaling(STEADY, 1), Limits(stale_s=3.0, hung_s=30.0))
    supervisor.turn()
    directory.registry.take(report(0, state="starting"), 0.0)
    directory.age_s = 500.0
    supervisor.turn()
    assert not hosts.begun[0].killed
    assert directory.registry.listing(0.0) == (), "students are not sent there"
    assert supervisor.counts["starting"] == 1
