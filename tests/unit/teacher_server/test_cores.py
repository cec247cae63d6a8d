"""Batches on cores of their own, and the work beside the model: nobody gets other numbers, and nobody waits who need not."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import torch

from teacher_server.config import ServerConfig
from teacher_server.jobs import Batch, Job
from teacher_server.live import LiveSettings
from teacher_server.metrics.metrics import Metrics
from teacher_server.models.split import FrozenTeacher, LayerSpan
from teacher_server.scheduling.admission import Admission
from teacher_server.scheduling.order import Choice, Order
from teaching_protocol import verbs
from teaching_protocol.verbs import Call
from tests.calls import Caller, backward_request, forward_request, in_s
from tests.unit.teacher_server.desk import Desk
from tests.unit.teacher_server.rooms import Facts, Room, Wish, assert_same, facts_of
from tests.unit.teacher_server.tiny_models import tiny_inputs

ABOUT_TEXT = ("answer", "teacher_message.enter", "state_consistency", "logits")


@pytest.fixture
def open_desk(bert: FrozenTeacher) -> Iterator[Callable[..., Desk]]:
    with ExitStack() as stack:

        def build(threads: int = 2, **settings: Any) -> Desk:
            desk = Desk(bert, 64, threads=threads, **settings)
            stack.callback(desk.close)
            return desk

        yield build


@contextmanager
def noted(teacher: FrozenTeacher, note: Callable[[], None]) -> Iterator[None]:
    """Whenever the last block begins."""

    def enter(*_: Any) -> None:
        note()

    hook = teacher.family.blocks[-1].register_forward_pre_hook(enter)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        hook.remove()


# who runs, on how many cores


def test_two_students_run_at_the_same_time_on_a_core_each(open_desk: Callable[..., Desk], bert: FrozenTeacher) -> None:
    desk, both, threads = open_desk(), threading.Barrier(2), list[int]()

    def meet() -> None:
        both.wait(20)
        threads.append(torch.get_num_threads())

    with Caller(desk.actor, "a") as ann, Caller(desk.actor, "b") as bob, Caller(desk.actor, "c") as cas:
        desk.shut()  # the third keeps a core until both wait, so that neither is alone
        first = desk.scheduler.submit(desk.job(forward_request(cas.session)))
        assert desk.busy.wait(20)
        waiting = [desk.scheduler.submit(desk.job(forward_request(each.session))) for each in (ann, bob)]
        desk.door.set()
        first.result(20)
        with noted(bert, meet):
            for each in waiting:
                each.result(20)
    assert threads == [1, 1]


def test_whoever_is_alone_has_all_cores_and_others_wait_for_them(
    open_desk: Callable[..., Desk], bert: FrozenTeacher
) -> None:
    desk, seen = open_desk(threads=3), list[tuple[str, int]]()
    with (
        Caller(desk.actor, "a") as ann,
        Caller(desk.actor, "b") as bob,
        noted(bert, lambda: seen.append((threading.current_thread().name, torch.get_num_threads()))),
    ):
        desk.shut()
        first = desk.scheduler.submit(desk.job(forward_request(ann.session)))
        assert desk.busy.wait(20)
        second = desk.scheduler.submit(desk.job(forward_request(bob.session)))
        assert not second.done()
        assert desk.scheduler.waiting(0.0)[0] == 1
        desk.door.set()
        first.result(20)
        second.result(20)
    assert seen == [("engine-0", 3)] * 2, "one team of threads"


@pytest.mark.parametrize("settings", [{"threads": 1}, {"threads": 2, "deterministic": True}], ids=str)
def test_one_core_or_bits_that_must_not_change_one_at_a_time(
    open_desk: Callable[..., Desk], settings: dict[str, Any]
) -> None:
    desk = open_desk(**settings, linger=False)
    with Caller(desk.actor, "a") as ann, Caller(desk.actor, "b") as bob, Caller(desk.actor, "c") as cas:
        desk.shut()
        first = desk.scheduler.submit(desk.job(forward_request(ann.session)))
        assert desk.busy.wait(20)
        others = [desk.scheduler.submit(desk.job(forward_request(each.session))) for each in (bob, cas)]
        with pytest.raises(TimeoutError):
            others[0].result(0.1)
        assert (desk.runs, desk.scheduler.waiting(0.0)[0]) == (1, 2)
        desk.door.set()
        for each in (first, *others):
            each.result(20)


def job(lane: str, tokens: int = 512, kind: str = "forward") -> Job:
    request: Any = verbs.ForwardRequest(backward_follows=True) if kind == "forward" else verbs.BackwardRequest()
    made = Job(kind, None, request, Call(), tokens // 64, tokens, bucket="b")
    made.__class__ = type("LaneJob", (Job,), {"lane": lane})
    return made


class Orders:
    """An order on so many cores that has learned what batches take."""

    def __init__(self, cores: int, start_tokens: float = 0.0, **settings: Any) -> None:
        self.live = LiveSettings(ServerConfig(model="tiny", **settings))
        self.order = Order(self.live, Metrics(), Admission(self.live), cores)
        self.start_tokens = start_tokens
        self.now = 0.0

    def learn(self, *sizes: int, at: int = 1) -> None:
        for tokens in sizes:
            self.order.ran(Batch((job("x", tokens),), at), 1e-4 * (self.start_tokens + tokens))

    def choose(self, *lanes: str, running: tuple[Batch, ...] = (), tokens: int = 512) -> Choice:
        jobs = [job(lane, tokens) for lane in lanes]
        for each in jobs:
            self.order.arrived(each, self.now)
        return self.order.choose(jobs, 0.0, self.now, running)

    def calls_in_a_loop(self, lane: str, think_s: float, times: int = 6) -> None:
        for _ in range(times):
            call = job(lane)
            self.order.arrived(call, self.now)
            self.order.done(call, None, True, self.now)
            self.now += think_s


@pytest.mark.parametrize(
    ("cores", "lanes", "taken", "calls", "given"),
    [
        (2, 1, 0, 1, 2),
        (2, 2, 0, 1, 1),
        (2, 3, 1, 2, 1),
        (2, 7, 1, 4, 1),
        (8, 2, 0, 1, 4),
        (8, 3, 0, 1, 2),
        (8, 1, 4, 1, 4),
        (64, 16, 0, 2, 8),
        (1, 5, 0, 5, 1),
    ],
)
def test_cores_and_calls_are_shared_out_among_those_at_work(
    cores: int, lanes: int, taken: int, calls: int, given: int
) -> None:
    """With nothing known of what batches take, and with so many cores taken by the batch of one other."""
    running = (Batch((job("other"),), taken),) if taken else ()
    choice = Orders(cores, batch_tokens=10**6).choose(*map(str, range(lanes)), running=running)
    assert (len(choice.batch.jobs), choice.batch.cores) == (calls, given)


def test_a_batch_grows_until_what_starting_it_costs_is_little() -> None:
    orders = Orders(2, start_tokens=64.0)
    orders.learn(*[64, 512] * 20)
    lanes = [str(lane) for lane in range(20)]
    assert len(orders.choose(*lanes, tokens=512).batch.jobs) == 1
    assert len(orders.choose(*lanes, tokens=120).batch.jobs) == 4  # of 8 x 64 tokens
    assert len(orders.choose(*lanes, tokens=32).batch.jobs) == 10  # half of the calls, for there are two cores


def test_who_will_not_come_before_it_is_over_takes_no_core_from_a_call() -> None:
    for think_s, cores in ((0.02, 1), (0.2, 2)):
        orders = Orders(2)
        orders.learn(512, 512, at=2)  # 51 ms
        orders.calls_in_a_loop("b", think_s)
        orders.now -= think_s  # it has just been answered
        assert orders.choose("a").batch.cores == cores


def test_backwards_of_one_graph_join_however_many_are_enough() -> None:
    orders = Orders(2, start_tokens=1.0)
    orders.learn(*[64, 512] * 20)
    forwards = [job(lane) for lane in "abcd"]
    backwards = [job(lane, kind="backward") for lane in "abcd"]
    for number, pair in enumerate((forwards[:2], forwards[2:]), 1):
        for each in pair:
            orders.order.arrived(each, 0.0)
            each.batch = number
            orders.order.done(each, None, True, 0.01)
    for each in backwards:
        orders.order.arrived(each, 0.02)
    orders.order.ran(Batch((job("x", 64, "backward"),)), 0.0065)
    orders.order.ran(Batch((job("x", 512, "backward"),)), 0.0513)
    chosen = orders.order.choose(backwards, 0.0, 0.02)
    assert [each.lane for each in chosen.batch.jobs] == ["a", "b"]


# the same numbers


def wishes(count: int) -> list[Wish]:
    generator = torch.Generator().manual_seed(7)
    settings = {"message_width": 8, "message_tokens": 6}
    return [
        Wish(
            {"message": torch.randn(1 + place % 3, 6, 8, generator=generator)} | tiny_inputs("bert", 1 + place % 3, 5),
            settings,
            ABOUT_TEXT if place % 2 else ("answer",),
        )
        for place in range(count)
    ]


def test_at_the_same_time_equals_alone(open_desk: Callable[..., Desk], bert: FrozenTeacher) -> None:
    students, at_once, most = wishes(8), set[int](), list[int]()
    desk = open_desk(max_tokens=32)

    def note() -> None:
        at_once.add(threading.get_ident())
        most.append(len(at_once))
        time.sleep(0.002)  # long enough for another to come

    def leave(*_: Any) -> None:
        at_once.discard(threading.get_ident())

    def steps(place: int) -> Facts:
        wish = students[place]
        with Caller(desk.actor, str(place), seed=place, **wish.settings) as caller:
            first, *_ = [step(caller, wish, place) for _ in range(12)]
            return first

    def step(caller: Caller, wish: Wish, seed: int) -> Facts:
        forward = wish.request(caller.session)
        answer = desk.actor.forward(forward, in_s(60))
        return facts_of(caller, answer, desk.actor.backward(wish.backward(forward, answer, seed), in_s(60)))

    leaving = bert.family.blocks[-1].register_forward_hook(leave)
    try:
        with noted(bert, note), ThreadPoolExecutor(len(students)) as pool:
            found = list(pool.map(steps, range(len(students))))
    finally:
        leaving.remove()
    assert max(most) == 2, "two were in the model at once"
    with Room(bert, students) as room:
        for place, facts in enumerate(found):
            assert_same(facts, room.alone(place))


def meet(both: threading.Barrier) -> None:
    both.wait(20)


def test_two_whole_passes_at_once_capture_each_its_own(bert: FrozenTeacher) -> None:
    """A forward of the model with its head, hooked for its states, while another is in the midst of one."""
    inputs = [bert.prepare(tiny_inputs("bert", rows, 5)) for rows in (1, 3)]
    wanted = [bert.states(each, [1, bert.family.layers], with_logits=True) for each in inputs]
    both = threading.Barrier(2)
    with noted(bert, lambda: meet(both)), ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda each: bert.states(each, [1, bert.family.layers], with_logits=True), inputs))
    for one, other in zip(found, wanted, strict=True):
        assert one.keys() == other.keys()
        assert_same(one, other)


def test_a_span_beside_a_pass_that_captures(bert: FrozenTeacher) -> None:
    both, layers = threading.Barrier(2), bert.family.layers
    inputs, width = bert.prepare(tiny_inputs("bert", 2, 5)), bert.family.widths[0]
    wanted = bert.states(inputs, [layers], with_logits=True)
    states = torch.randn(1, 3, width, generator=torch.Generator().manual_seed(0))
    alone = bert.upper(states, None, LayerSpan(1, layers))
    with noted(bert, lambda: meet(both)), ThreadPoolExecutor(2) as pool:
        span = pool.submit(bert.upper, states, None, LayerSpan(1, layers))
        found = pool.submit(bert.states, inputs, [layers], with_logits=True).result(20)
        assert_same({"left": span.result(20)}, {"left": alone})
    assert_same(found, wanted)


# the work beside the model


def test_a_step_does_not_wait_for_the_batch_of_another(open_desk: Callable[..., Desk]) -> None:
    desk = open_desk(threads=1)
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


def test_a_step_waits_for_its_own_sessions_backward(open_desk: Callable[..., Desk]) -> None:
    desk, done = open_desk(), list[str]()
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
