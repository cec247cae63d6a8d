"""The way of one session among replicas: written lists, directories that come and go, failures, and what is better by now."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from student_client.connection.pinning import ranked
from student_client.connection.resolving import expanded
from student_client.connection.route import Route
from teaching_protocol.directory import Replica
from teaching_protocol.errors import TeacherUnavailable, Unauthenticated


@dataclass
class World:
    """Who answers what at which address; nobody at any other."""

    answers: dict[str, Any] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def ask(self, address: str, limit_s: float) -> tuple[Replica, ...] | None:
        self.asked.append(address)
        found = self.answers.get(address)
        if isinstance(found, Exception):
            raise found
        return found  # type: ignore[no-any-return]

    def serve(self, *numbers: int, at: str = "head:1", **changed: Any) -> None:
        """A fleet: the directory and every replica tell of these."""
        listing = tuple(Replica(f"r{number}", f"a{number}:1", **changed.get(f"r{number}", {})) for number in numbers)
        self.answers = {at: listing} | {each.address: listing for each in listing}

    def route(self, *addresses: str, student: str = "ann", **options: Any) -> Route:
        return Route(addresses or ("head:1",), student, ask=self.ask, **options)


def order_of(student: str, *numbers: int) -> list[str]:
    """Addresses in the order in which a student prefers replicas of these numbers."""
    return [name.replace("r", "a") + ":1" for name in ranked(student, [f"r{number}" for number in numbers])]


def found(route: Route) -> str:
    route.find()
    return route.place.address


def moved(route: Route) -> str:
    route.move_on()
    return route.place.address


def test_a_teacher_that_stands_alone_is_gone_to_as_written() -> None:
    world = World({"one:1": ()})
    route = world.route("one:1")
    assert not route.find()
    assert (route.place.address, route.has_others) == ("one:1", False)
    assert moved(route) == "one:1"
    assert not route.look()


def test_a_written_list_is_gone_to_in_its_order_round_and_round() -> None:
    world = World({"b:1": ()})
    route = world.route("a:1", "b:1", "c:1")
    assert found(route) == "a:1"
    assert route.has_others
    assert [moved(route) for _ in range(5)] == ["b:1", "c:1", "a:1", "b:1", "c:1"]


def test_what_was_opened_in_between_counts_as_tried_no_more() -> None:
    route = World({"b:1": ()}).route("a:1", "b:1", "c:1")
    route.find()
    assert moved(route) == "b:1"
    route.arrived()
    assert moved(route) == "a:1", "the first is preferred again"


def test_a_written_list_can_be_spread() -> None:
    addresses = ("a:1", "b:1", "c:1")
    for student in ("ann", "bob", "eve", "kim"):
        assert (
            found(World({"a:1": ()}).route(*addresses, student=student, spread=True)) == ranked(student, addresses)[0]
        )


@given(st.text(min_size=1, max_size=9), st.sets(st.integers(0, 30), min_size=1, max_size=6))
def test_a_fleet_is_ranked_by_the_students_name(student: str, numbers: set[int]) -> None:
    world = World()
    world.serve(*numbers)
    route = world.route(student=student)
    assert found(route) == order_of(student, *numbers)[0]
    rounds = [moved(route) for _ in range(len(numbers) - 1)]
    assert [order_of(student, *numbers)[0], *rounds] == order_of(student, *numbers), "each once before any twice"


def test_a_replica_that_drains_is_not_gone_to() -> None:
    world = World()
    first, second, *_ = order_of("ann", 0, 1, 2)
    world.serve(0, 1, 2, **{first.replace("a", "r")[:-2]: {"state": "draining"}})
    assert found(world.route()) == second


def test_a_dead_replica_is_left_though_the_directory_still_tells_of_it() -> None:
    world = World()
    world.serve(0, 1)
    route, (first, second) = world.route(), order_of("ann", 0, 1)
    assert found(route) == first
    assert moved(route) == second


def test_who_is_started_again_elsewhere_is_the_same_replica() -> None:
    """A lone replica dies and serves at another port: the student finds it there."""
    world = World()
    world.serve(0)
    route = world.route()
    assert found(route) == "a0:1"
    world.answers = {"head:1": (Replica("r0", "new:2"),)}
    assert moved(route) == "new:2"


def test_without_the_directory_the_replicas_themselves_are_asked() -> None:
    world = World()
    world.serve(0, 1)
    route = world.route()
    route.find()
    del world.answers["head:1"]
    world.answers[order_of("ann", 0, 1)[1]] = (Replica("r7", "a7:1"),)
    assert moved(route) == "a7:1"


def test_when_nobody_answers_what_was_known_holds() -> None:
    world = World()
    world.serve(0, 1)
    route = world.route()
    route.find()
    world.answers.clear()
    assert [moved(route), moved(route)] == order_of("ann", 0, 1)[::-1]
    assert not route.look()


@pytest.mark.parametrize("error", [TeacherUnavailable("no teacher of this fleet serves now"), Unauthenticated("who?")])
def test_what_a_directory_says_at_the_start_is_said(error: Exception) -> None:
    with pytest.raises(type(error)):
        World({"head:1": error}).route().find()


def test_a_directory_that_has_nobody_for_a_while_breaks_nothing() -> None:
    world = World()
    world.serve(0, 1)
    route = world.route()
    route.find()
    world.answers = dict.fromkeys(world.answers, TeacherUnavailable("nobody"))
    assert moved(route) == order_of("ann", 0, 1)[1]
    assert not route.look()


def test_a_session_belongs_to_a_replica_that_joins_and_is_preferred() -> None:
    world = World()
    first, *rest = order_of("ann", 0, 1, 2)
    numbers = [int(address[1]) for address in rest]
    world.serve(*numbers)
    route = world.route()
    assert found(route) == rest[0]
    assert not route.look()
    assert not route.take_better()
    world.serve(0, 1, 2)
    assert route.look()
    assert route.take_better()
    assert route.place.address == first
    assert not route.look()


def test_no_session_moves_to_who_does_not_answer() -> None:
    world = World()
    first, *rest = order_of("ann", 0, 1, 2)
    world.serve(*(int(address[1]) for address in rest))
    route = world.route()
    route.find()
    world.serve(0, 1, 2)
    del world.answers[first]
    assert not route.look()


def test_who_failed_is_gone_back_to_when_it_has_settled(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("student_client.connection.route.time.monotonic", lambda: now)
    world = World()
    world.serve(0, 1)
    route, (first, second) = world.route(settle_s=30.0), order_of("ann", 0, 1)
    for wait_s in (30.0, 60.0, 120.0):
        assert found(route) == first
        assert moved(route) == second
        route.arrived()
        now += wait_s - 1
        assert not route.look()
        now += 2
        assert route.look()
        assert route.take_better()
        route.arrived()


def test_a_written_list_never_moves_a_session_by_itself() -> None:
    route = World({"a:1": (), "b:1": ()}).route("a:1", "b:1", spread=True)
    route.find()
    route.move_on()
    assert not route.look()


def names(found: list[str]) -> Callable[..., list[Any]]:
    return lambda host, port, type: [(2, 1, 6, "", (address, port)) for address in found]


def test_a_name_stands_for_all_its_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", names(["10.0.0.2", "10.0.0.1", "::1", "10.0.0.1"]))
    addresses = expanded("dns:///t-pods.lab.svc:50051")
    assert addresses == ["10.0.0.1:50051", "10.0.0.2:50051", "[::1]:50051"]
    assert expanded("host:1") == ["host:1"]
    world = World(dict.fromkeys(addresses, ()))
    route = world.route("dns:///t-pods.lab.svc:50051")
    assert found(route) == ranked("ann", addresses)[0]
    assert moved(route) == ranked("ann", addresses)[1]
    assert World().route("dns:///t-pods.lab.svc:50051").find(), "teachers that know no directory are placed, too"


@pytest.mark.parametrize("address", ["dns:///nowhere.invalid:50051", "dns:///localhost", "dns:///localhost:x"])
def test_a_name_without_an_address(address: str) -> None:
    with pytest.raises(TeacherUnavailable, match="dns:///NAME:PORT"):
        expanded(address)


def test_what_was_not_tried_yet() -> None:
    route = World({"b:1": ()}).route("a:1", "b:1", "c:1")
    found(route)
    assert route.has_untried
    assert [moved(route), route.has_untried, moved(route), route.has_untried] == ["b:1", True, "c:1", False]
    route.arrived()
    assert route.has_untried, "a session was open since"
    assert not World({"a:1": ()}).route("a:1").has_untried
