"""Calls that share a graph and part ways: every order of Backwards, leaving, stepping and evicting in between."""

from __future__ import annotations

import gc
import itertools
import weakref
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from teacher_server.models.split import FrozenTeacher
from teaching_protocol import verbs
from teaching_protocol.errors import CallFinished, InputsNeeded, NonFiniteError, StaleCall, TeachingError
from tests.calls import in_s
from tests.unit.teacher_server.rooms import Facts, Room, Wish, assert_same
from tests.unit.teacher_server.tiny_models import tiny_model

RECOMPUTES, HITS = "teacher_graph_recomputes_total", "teacher_graph_cache_hits_total"


def wishes(count: int, rows: Sequence[int] = ()) -> list[Wish]:
    generator = torch.Generator().manual_seed(count)
    sizes = rows or [2] * count
    return [
        Wish(
            {"message": torch.randn(each, 2 + place % 3, 6 + place, generator=generator)}, {"message_width": 6 + place}
        )
        for place, each in enumerate(sizes)
    ]


def alone(bert: FrozenTeacher, students: list[Wish]) -> list[Facts]:
    with Room(bert, students) as room:
        return [room.alone(place) for place in range(len(students))]


class Cohort:
    """A room in which all students' Forwards have run as one batch."""

    def __init__(self, room: Room) -> None:
        self.room = room
        self.forwards = room.forwards()
        self.answers = room.run(self.forwards)

    def backward(self, place: int) -> verbs.BackwardRequest:
        return self.room.wishes[place].backward(self.forwards[place], self.answers[place], place)

    def run(self, *places: int) -> dict[int, Facts]:
        """The Backwards of these students as one batch."""
        replies = self.room.run([self.backward(place) for place in places])
        return {
            place: self.room.facts(place, self.answers[place], reply)
            for place, reply in zip(places, replies, strict=True)
        }


def orders(count: int) -> list[list[tuple[int, ...]]]:
    """Every way to send the Backwards of so many students in batches, one after the other."""
    found = []
    for order in itertools.permutations(range(count)):
        for cuts in itertools.product((False, True), repeat=count - 1):
            batches: list[tuple[int, ...]] = [(order[0],)]
            for place, is_cut in zip(order[1:], cuts, strict=True):
                if is_cut:
                    batches.append((place,))
                else:
                    batches[-1] += (place,)
            if all(list(batch) == sorted(batch) for batch in batches):
                found.append(batches)
    return found


@pytest.mark.parametrize("batches", orders(3), ids=str)
def test_in_every_order_everybody_gets_what_it_gets_alone(bert: FrozenTeacher, batches: list[tuple[int, ...]]) -> None:
    students = wishes(3)
    with Room(bert, students) as room:
        cohort = Cohort(room)
        found: dict[int, Facts] = {}
        for batch in batches:
            found |= cohort.run(*batch)
        assert room.graph_bytes == 0, "all Backwards are done"
        served, again = room.metric(HITS), room.metric(RECOMPUTES)
    for place, wanted in enumerate(alone(bert, students)):
        assert_same(found[place], wanted)
    # of three equal calls, two or three at once are worth the whole graph, and one is not
    assert served + again == 3
    assert again == {(3,): 0, (1, 2): 1, (2, 1): 1, (1, 1, 1): 3}[tuple(map(len, batches))]


@pytest.mark.parametrize(
    ("rows", "first", "expected"),
    [
        ((1, 1), (0,), 0),  # half of the rows: the whole graph costs no more
        ((1, 3), (0,), 1),
        ((3, 1), (0,), 0),
        ((2, 2, 2, 2), (0,), 1),
        ((2, 2, 2, 2), (0, 3), 0),
    ],
)
def test_a_graph_is_used_when_it_costs_no_more_than_to_run_again(
    bert: FrozenTeacher, rows: tuple[int, ...], first: tuple[int, ...], expected: int
) -> None:
    with Room(bert, wishes(len(rows), rows)) as room:
        cohort = Cohort(room)
        cohort.run(*first)
        assert room.metric(RECOMPUTES) == expected


def test_after_the_first_went_alone_the_others_still_share_the_graph(bert: FrozenTeacher) -> None:
    students = wishes(4)
    with Room(bert, students) as room:
        cohort = Cohort(room)
        whole = room.graph_bytes
        found = cohort.run(2)
        assert room.graph_bytes == whole, "three of four are to come: the graph stays"
        found |= cohort.run(0, 1, 3)
        assert (room.metric(RECOMPUTES), room.metric(HITS), room.graph_bytes) == (1, 3, 0)
    for place, wanted in enumerate(alone(bert, students)):
        assert_same(found[place], wanted)


def test_a_graph_of_which_less_than_half_is_to_come_goes_at_once(bert: FrozenTeacher) -> None:
    with Room(bert, wishes(4)) as room:
        cohort = Cohort(room)
        whole = room.graph_bytes
        for place in (0, 1):
            cohort.run(place)
            assert room.graph_bytes == whole
        found = cohort.run(2)
        assert room.graph_bytes == 0
        assert room.metric("teacher_graph_cache_evictions_total") == 1  # the fourth's
        found |= cohort.run(3)
    wanted = alone(bert, wishes(4))
    for place in (2, 3):
        assert_same(found[place], wanted[place])


@pytest.mark.parametrize("how", ["leave", "lease", "step", "import"])
def test_one_that_goes_takes_nothing_from_the_others(bert: FrozenTeacher, how: str) -> None:
    students = wishes(3)
    with Room(bert, students) as room:
        state = room.callers[0].export()
        cohort = Cohort(room)
        gone = room.actor.sessions.get(room.callers[0].session)
        codec = weakref.ref(gone.codec)
        if how == "leave":
            room.actor.leave(verbs.LeaveRequest(room.callers[0].session), in_s(5))
        elif how == "lease":
            gone.lease_until = 0.0
            room.actor.reap()
        elif how == "step":
            room.callers[0].step(1)
        else:
            room.actor.import_(verbs.ImportRequest(room.callers[0].session, state), in_s(5))
        if how in ("step", "import"):
            (error,) = room.run([cohort.backward(0)])
            assert isinstance(error, StaleCall)
        found = cohort.run(1, 2)
        assert room.metric(RECOMPUTES) == 0
        assert room.graph_bytes == 0
        if how in ("leave", "lease"):
            del gone, cohort
            gc.collect()
            assert codec() is None, "nothing of the one that went is held"
    wanted = alone(bert, students)
    for place in (1, 2):
        assert_same(found[place], wanted[place])


def test_all_leave_and_all_memory_is_back(bert: FrozenTeacher) -> None:
    with Room(bert, wishes(4)) as room:
        cohort = Cohort(room)
        held = [
            weakref.ref(member)
            for each in {*room.actor._engine.graphs._kept.values()}
            for member in each.members.values()
        ]
        assert len(held) == 4
        for caller in room.callers[:3]:
            room.actor._engine.graphs.drop(caller.session.session_id)
        assert room.graph_bytes == 0
        del cohort
        gc.collect()
        assert all(each() is None for each in held)


@pytest.mark.parametrize("config", [{"graph_cache_bytes": 0}, {"session_graph_bytes": 0}])
def test_a_shared_graph_over_the_budget_is_run_again_as_one_batch(bert: FrozenTeacher, config: dict[str, int]) -> None:
    students = wishes(3)
    with Room(bert, students, **config) as room:
        cohort = Cohort(room)
        assert room.graph_bytes == 0
        found = cohort.run(0, 1, 2)
        assert room.metric(RECOMPUTES) == 3
    for place, wanted in enumerate(alone(bert, students)):
        assert_same(found[place], wanted)


def test_bytes_are_counted_once_for_the_server_and_by_share_for_a_session(bert: FrozenTeacher) -> None:
    with Room(bert, wishes(2, (1, 3))) as room:
        Cohort(room)
        whole = room.graph_bytes
        graphs = room.actor._engine.graphs
        (cohort,) = {*graphs._kept.values()}
        shares = [cohort.share_bytes(key) for key in cohort.members]
        assert shares == [whole // 4, 3 * whole // 4]
    with Room(bert, wishes(2, (1, 3)), session_graph_bytes=whole // 2) as room:
        cohort_of_two = Cohort(room)
        assert room.graph_bytes == 0, "without the larger session's share, less than half is left"
        cohort_of_two.run(0, 1)
    with Room(bert, wishes(2, (1, 3)), session_graph_bytes=3 * whole // 4 + 1) as room:
        Cohort(room)
        assert room.graph_bytes == whole


def test_a_backward_without_the_inputs_asks_for_them_and_its_mates_do_not_notice(bert: FrozenTeacher) -> None:
    students = wishes(3)
    with Room(bert, students, graph_cache_bytes=0, session_input_bytes=100) as room:
        cohort = Cohort(room)
        room.run([students[1].request(room.callers[1].session)])  # the second's older inputs are let go
        replies = room.run([cohort.backward(place) for place in range(3)])
        assert isinstance(replies[1], InputsNeeded)
        found = {place: room.facts(place, cohort.answers[place], replies[place]) for place in (0, 2)}
        assert room.metric("teacher_batch_retries_total") == 0
    wanted = alone(bert, students)
    for place, facts in found.items():
        assert_same(facts, wanted[place])


# One student's numbers


def test_a_gradient_that_overflows_is_its_owners_alone(bert: FrozenTeacher) -> None:
    students = wishes(3)
    with Room(bert, students) as room:
        cohort = Cohort(room)
        huge = torch.full_like(cohort.answers[1].outputs["answer"], 3e38).cumsum(2).clamp(max=3e38)
        requests = [cohort.backward(place) for place in range(3)]
        good = requests[1]
        requests[1] = verbs.BackwardRequest(good.session, "huge", good.forward_id, {"answer": huge})
        replies = room.run(requests)
        assert isinstance(replies[1], NonFiniteError)
        assert not room.callers[1].gathered()
        assert room.metric("teacher_batch_retries_total") == 0
        found = {place: room.facts(place, cohort.answers[place], replies[place]) for place in (0, 2)}
        (reply,) = room.run([good])  # and its owner may send a better one
        found[1] = room.facts(1, cohort.answers[1], reply)
    for place, wanted in enumerate(alone(bert, students)):
        assert_same(found[place], wanted)


@pytest.mark.parametrize("model_type", ["bert", "gpt2", "mistral", "t5", "vit", "efficientnet", "resnet"])
def test_a_codec_that_is_nan_is_its_owners_alone(model_type: str) -> None:
    teacher = FrozenTeacher(tiny_model(model_type), model_type)
    generator = torch.Generator().manual_seed(0)
    tokens = (16, 16, 16) if model_type in ("efficientnet", "resnet") else (3, 5, 4)
    students = [
        Wish({"message": torch.randn(2, each, 8, generator=generator)}, {"exit": teacher.family.layers})
        for each in tokens
    ]
    with Room(teacher, students) as room:
        session = room.actor.sessions.get(room.callers[1].session)
        with torch.no_grad():
            next(iter(session.codec.decoders.parameters())).fill_(float("nan"))
        forwards = room.forwards()
        answers = room.run(forwards)
        assert isinstance(answers[1], NonFiniteError)
        grads = room.run([students[place].backward(forwards[place], answers[place], place) for place in (0, 2)])
        found = {place: room.facts(place, answers[place], each) for place, each in zip((0, 2), grads, strict=True)}
        assert (room.metric(RECOMPUTES), room.metric("teacher_batch_retries_total")) == (0, 0)
    wanted = alone(teacher, students)
    for place, facts in found.items():
        assert_same(facts, wanted[place])


def test_a_second_backward_and_a_repeated_one(bert: FrozenTeacher) -> None:
    with Room(bert, wishes(2)) as room:
        cohort = Cohort(room)
        requests = [cohort.backward(0), cohort.backward(1)]
        first = room.run(requests)
        once = room.callers[0].export()
        again = room.run(requests)
        for one, other in zip(first, again, strict=True):
            assert torch.equal(one.grads["message"], other.grads["message"])
        other_id = verbs.BackwardRequest(requests[0].session, "other", requests[0].forward_id, requests[0].grads)
        replies = room.run([other_id, requests[1]])
        assert isinstance(replies[0], CallFinished)
        assert torch.equal(replies[1].grads["message"], first[1].grads["message"])
        assert room.callers[0].export() == once


# Anything in any order


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_order_of_events(bert: FrozenTeacher, data: st.DataObject) -> None:
    """Random batches of Forwards and Backwards under random budgets: every reply is the one it is alone."""
    count = data.draw(st.integers(2, 4))
    students = wishes(count)
    wanted = alone(bert, students)
    budget = data.draw(st.sampled_from([0, 20_000, 60_000, 10**9]))
    with Room(bert, students, graph_cache_bytes=budget) as room:
        open_: dict[int, tuple[Any, Any]] = {}
        for _ in range(data.draw(st.integers(1, 6))):
            idle = [place for place in range(count) if place not in open_]
            chosen = data.draw(st.lists(st.sampled_from(idle), unique=True)) if idle else []
            forwards = room.forwards(chosen)
            if forwards:
                open_ |= dict(zip(chosen, zip(forwards, room.run(forwards), strict=True), strict=True))
            ready = data.draw(st.lists(st.sampled_from(sorted(open_)), unique=True)) if open_ else []
            requests = [students[place].backward(*open_[place], place) for place in ready]
            for place, reply in zip(ready, room.run(requests) if requests else [], strict=True):
                assert not isinstance(reply, TeachingError), reply
                _, answer = open_.pop(place)
                found = room.facts(place, answer, reply)
                assert_same(
                    {name: value for name, value in found.items() if not name.startswith("gathered.")},
                    {name: value for name, value in wanted[place].items() if not name.startswith("gathered.")},
                )
            kept = {*room.actor._engine.graphs._kept.values()}
            assert room.graph_bytes == sum(each.size_bytes for each in kept) <= max(0, budget)
            assert all(each.pays_for(each.members) for each in kept)
    assert room.graph_bytes == 0
