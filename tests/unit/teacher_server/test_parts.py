"""Batches in even parts, and the work beside the model: nobody gets other numbers, and nobody waits who need not."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from teacher_server.engine.parts import Parts, even_parts
from teacher_server.models.split import FrozenTeacher, LayerSpan
from teacher_server.models.turns import Turns
from teaching_protocol import verbs
from teaching_protocol.errors import NonFiniteError
from tests.calls import Caller, backward_request, forward_request
from tests.integration.gate import poll
from tests.unit.teacher_server.desk import Desk
from tests.unit.teacher_server.rooms import Room, Wish, assert_same
from tests.unit.teacher_server.tiny_models import tiny_inputs

ABOUT_TEXT = ("answer", "teacher_message.enter", "state_consistency")


def wishes(*rows: int, outputs: tuple[str, ...] = ("answer",)) -> list[Wish]:
    generator = torch.Generator().manual_seed(7)
    return [
        Wish(
            {"message": torch.randn(each, 6, 8, generator=generator)}
            | (tiny_inputs("bert", each, 5) if len(outputs) > 1 else {}),
            {"message_width": 8, "message_tokens": 6},
            outputs,
        )
        for each in rows
    ]


@given(st.lists(st.tuples(st.integers(1, 4), st.floats(1, 1000)), min_size=1, max_size=20), st.integers(1, 5))
def test_parts_hold_everybody_once_and_are_even(groups: list[tuple[int, float]], count: int) -> None:
    names = iter(range(1000))
    things = [[next(names) for _ in range(size)] for size, _ in groups]
    weights = [weight for _, weight in groups]
    parts = even_parts(things, weights, count)
    assert sorted(chain.from_iterable(parts)) == list(chain.from_iterable(things))
    assert len(parts) in (1, count)
    if len(parts) > 1:
        place = {thing: number for number, part in enumerate(parts) for thing in part}
        assert all(len({place[thing] for thing in group}) == 1 for group in things), "a group stays whole"
        loads = [sum(weights[place] for place, group in enumerate(things) if group[0] in part) for part in parts]
        assert max(loads) * count <= 1.15 * sum(loads) * (1 + 1e-9)


def test_what_is_equal_is_shared_out_and_what_is_not_stays_together() -> None:
    assert even_parts([["a"], ["b"], ["c"], ["d"]], [1, 1, 1, 1], 2) == [["a", "c"], ["b", "d"]]
    assert even_parts([["a"], ["b"], ["c"]], [1, 1, 1], 2) == [["a", "b", "c"]]
    assert even_parts([["a"], ["b"]], [1, 1], 4) == [["a", "b"]]


@pytest.mark.parametrize("rows", [(2, 2), (3, 3, 3, 3), (4, 1, 1, 2)])
@pytest.mark.parametrize("outputs", [("answer",), ABOUT_TEXT], ids=["message", "text"])
def test_in_parts_equals_alone(bert: FrozenTeacher, rows: tuple[int, ...], outputs: tuple[str, ...]) -> None:
    students = wishes(*rows, outputs=outputs)
    seen: list[str] = []
    with Room(bert, students, threads=2) as room:
        room.exchange()  # the teacher's own states are known from here on
        hook = bert.family.blocks[-1].register_forward_pre_hook(lambda *_: seen.append(threading.current_thread().name))
        try:
            found = room.exchange()
        finally:
            hook.remove()
    assert [name.rpartition("_")[0] for name in seen] == ["engine-part"] * 2, "two halves"
    with Room(bert, students) as room:
        wanted = [(room.alone(place), room.alone(place))[1] for place in range(len(students))]
    for one, other in zip(found, wanted, strict=True):
        assert_same(one, other)


def test_whoever_must_wait_for_the_models_own_states_is_not_shared_out(bert: FrozenTeacher) -> None:
    students, seen = wishes(2, 2, outputs=ABOUT_TEXT), set[str]()
    with Room(bert, students, threads=2) as room:
        hook = bert.family.blocks[-1].register_forward_pre_hook(lambda *_: seen.add(threading.current_thread().name))
        try:
            room.run(room.forwards())
        finally:
            hook.remove()
    assert seen == {threading.current_thread().name}


def test_calls_of_one_graph_stay_in_one_part(bert: FrozenTeacher) -> None:
    """Their Forward was one batch of uneven calls; their Backwards alone would be even."""
    students = wishes(2, 2, 2)
    with Room(bert, students, threads=2) as room:
        forwards = room.forwards()
        answers = room.run(forwards)
        pairs = list(zip(students, forwards, answers, strict=True))[:2]
        replies = room.run([wish.backward(forward, answer) for wish, forward, answer in pairs])
        assert all(isinstance(reply, verbs.BackwardReply) for reply in replies)
        assert room.metric("teacher_graph_recomputes_total") == 0
        assert room.metric("teacher_graph_cache_hits_total") == 2


def test_a_poisoned_call_harms_nobody_in_either_part(bert: FrozenTeacher) -> None:
    students = wishes(2, 2, 2, 2)
    with Room(bert, students, threads=2) as room:
        forwards = room.forwards()
        answers = room.run(forwards)
        backwards = [
            wish.backward(*pair, seed)
            for seed, (wish, *pair) in enumerate(zip(students, forwards, answers, strict=True))
        ]
        backwards[1].grads["answer"].fill_(float("nan"))
        replies = room.run(backwards)
        found = [room.facts(place, answers[place], replies[place]) for place in (0, 2, 3)]
    assert isinstance(replies[1], NonFiniteError)
    with Room(bert, students) as room:
        for place, facts in zip((0, 2, 3), found, strict=True):
            assert_same(facts, room.alone(place))


@pytest.fixture
def desk(bert: FrozenTeacher) -> Iterator[Desk]:
    made = Desk(bert, 32)
    yield made
    made.close()


def test_a_step_does_not_wait_for_the_batch_of_another(desk: Desk) -> None:
    with Caller(desk.actor, "a") as ann, Caller(desk.actor, "b") as bob:
        forward, _ = ann.forward()
        ann.backward(forward)
        desk.shut()
        running = desk.scheduler.submit(desk.job(forward_request(bob.session)))
        assert desk.busy.wait(20)
        assert ann.step(1).step == 1
        assert ann.export()
        assert not running.done()
        desk.door.set()
        running.result(20)


def test_a_step_waits_for_its_own_sessions_backward(desk: Desk) -> None:
    done: list[str] = []
    with Caller(desk.actor, "a") as ann:
        desk.shut()
        forward = forward_request(ann.session)
        jobs = {
            "forward": desk.job(forward),
            "backward": desk.job(backward_request(forward)),
            "step": desk.job(verbs.StepRequest(ann.session, 1, 0.1)),
        }
        futures = {name: desk.scheduler.submit(job) for name, job in jobs.items()}
        for name, future in futures.items():
            future.add_done_callback(lambda _, name=name: done.append(name))
        assert desk.busy.wait(20)
        desk.door.set()
        assert futures["step"].result(20).step == 1
    assert done == ["forward", "backward", "step"]


def test_alone_with_it_means_alone() -> None:
    turns, inside, most, wrong = Turns(), [0, 0], [0], list[str]()
    lock, begin = threading.Lock(), threading.Barrier(6)

    def work(number: int) -> None:
        alone = number % 3 == 0
        begin.wait(20)
        for _ in range(200):
            with turns.alone() if alone else turns.together():
                with lock:
                    inside[alone] += 1
                    most[0] = max(most[0], inside[0])
                    if inside[1] and sum(inside) > 1:
                        wrong.append(f"{inside}")
                with lock:
                    inside[alone] -= 1

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6)))
    assert not wrong
    assert inside == [0, 0]


def test_two_may_be_in_a_span_while_nobody_hooks_the_model(bert: FrozenTeacher) -> None:
    """A pass that captures states waits until those in a span have left it, and captures its own alone."""
    door, entered = threading.Event(), threading.Event()

    def hold(_: object, arguments: tuple[torch.Tensor, ...]) -> None:
        if arguments[0].shape[1] == 5:
            entered.set()
            assert door.wait(20)

    inputs = bert.prepare(bert.example())
    wanted = bert.states(inputs, [bert.family.layers])
    hook = bert.family.blocks[-1].register_forward_pre_hook(hold)
    span = LayerSpan(bert.family.layers - 1, bert.family.layers)
    width = bert.family.widths[0]
    try:
        with ThreadPoolExecutor(3) as pool:
            slow = pool.submit(bert.upper, torch.zeros(1, 5, width), None, span)
            assert entered.wait(20)
            assert pool.submit(bert.upper, torch.zeros(1, 3, width), None, span).result(20).shape[1] == 3
            captured = pool.submit(bert.states, inputs, [bert.family.layers])
            poll(lambda: captured.running(), "it waits for its turn")
            assert not captured.done()
            door.set()
            slow.result(20)
            found = captured.result(20)
    finally:
        hook.remove()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_parts_run_at_once_on_one_core_each() -> None:
    parts, both = Parts(2), threading.Barrier(2)

    def work(part: list[int]) -> tuple[int, int]:
        both.wait(20)
        return sum(part), torch.get_num_threads()

    try:
        assert parts.run(work, [[1, 2], [3]]) == [(3, 1), (3, 1)]
    finally:
        parts.close()
