"""Short calls that go first between two layers of a long one: the same numbers for both, and nobody waits for all of it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import torch

from teacher_server.config import ServerConfig
from teacher_server.jobs import Batch, Job
from teacher_server.live import LiveSettings
from teacher_server.metrics.metrics import Metrics
from teacher_server.models.pauses import Pauses
from teacher_server.models.split import FrozenTeacher, LayerSpan
from teacher_server.scheduling.admission import Admission
from teacher_server.scheduling.order import Choice, Order
from teaching_protocol import verbs
from teaching_protocol.errors import NonFiniteError
from teaching_protocol.verbs import Call
from tests.calls import WIDTH, Caller, backward_request, forward_request
from tests.unit.teacher_server.desk import Desk
from tests.unit.teacher_server.tiny_models import MODEL_TYPES, tiny_inputs, tiny_model

LONG_ROWS, TOKENS = 128, 4  # 512 tokens


@pytest.fixture
def open_desk(bert: FrozenTeacher) -> Iterator[Callable[..., Desk]]:
    with ExitStack() as stack:

        def build(**settings: Any) -> Desk:
            desk = Desk(bert, threads=1, linger=False, **settings)
            stack.callback(desk.close)
            return desk

        yield build


def through(teacher: FrozenTeacher, seed: int, pauses: Pauses | None = None) -> list[torch.Tensor]:
    """States in and out of all layers but the first, and the gradient."""
    span = LayerSpan(1, teacher.family.layers)
    states = torch.randn(2, 16, teacher.family.widths[1], generator=torch.Generator().manual_seed(seed))
    mask = torch.ones(2, 16, dtype=torch.bool)
    left = teacher.upper(states.requires_grad_(), mask, span, pauses)
    return [left, *torch.autograd.grad(left.float().square().sum(), states)]


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_what_runs_in_a_pause_changes_no_bit_of_either(model_type: str) -> None:
    teacher, pauses = FrozenTeacher(tiny_model(model_type)), Pauses()
    inside: list[list[torch.Tensor]] = []
    pauses.go_first = lambda done: inside.append(
        [*through(teacher, 1, pauses), *teacher.states(tiny(model_type), [1]).values()]
    )
    with pauses.opened():
        found = through(teacher, 0, pauses)
    assert len(inside) == 2 * (teacher.family.layers - 2), "one between any two layers, forward and backward"
    assert all(map(torch.equal, found, through(teacher, 0)))
    alone = [*through(teacher, 1), *teacher.states(tiny(model_type), [1]).values()]
    assert all(all(map(torch.equal, each, alone)) for each in inside)
    assert not pauses.are_open


def tiny(model_type: str) -> dict[str, torch.Tensor]:
    return tiny_inputs(model_type, 2, 4)


def test_the_clock_stands_still_in_a_pause() -> None:
    pauses, over = Pauses(), threading.Event()
    pauses.go_first = lambda done: bool(over.wait(0.2))  # type: ignore[assignment, return-value]
    began = pauses.clock()
    with pauses.opened():
        pauses.after_layer(torch.zeros(1), 0.5)
    assert pauses.clock() - began < 0.1


def test_each_thread_has_pauses_of_its_own() -> None:
    pauses, shares = Pauses(), list[float]()
    pauses.go_first = shares.append
    other: list[bool] = []
    with pauses.opened(), pauses.share(0.5, 1.0):
        thread = threading.Thread(target=lambda: other.append(pauses.are_open))
        thread.start()
        thread.join()
        pauses.after_layer(torch.zeros(1), 0.5)
    assert other == [False]
    assert shares == [0.75]


def test_a_batch_in_a_pause_is_no_share_of_the_one_that_makes_it() -> None:
    pauses, shares = Pauses(), list[float]()

    def go(share: float) -> None:
        shares.append(share)
        with pauses.opened(), pauses.share(0.0, 0.5):
            pauses.after_layer(torch.zeros(1), 0.5)

    pauses.go_first = go
    with pauses.opened(), pauses.share(0.5, 1.0):
        pauses.after_layer(torch.zeros(1), 0.2)
        pauses.after_layer(torch.zeros(1), 0.6)
    assert shares == pytest.approx([0.6, 0.8])


def test_an_error_in_a_pause_leaves_pauses_as_they_were() -> None:
    pauses = Pauses()

    def fail(done: float) -> None:
        raise ZeroDivisionError

    pauses.go_first = fail
    with pytest.raises(ZeroDivisionError), pauses.opened():
        pauses.after_layer(torch.zeros(1), 0.5)
    assert not pauses.are_open
    with pauses.opened():
        assert pauses.are_open


@contextmanager
def held(bert: FrozenTeacher, rows: int, *, backward: bool) -> Iterator[tuple[threading.Event, threading.Event]]:
    """The first layer of the span (in backward the last) waits for the second event with so many rows; the first says so."""
    reached, goes_on = threading.Event(), threading.Event()

    def wait(*_: Any) -> None:
        reached.set()
        assert goes_on.wait(20)

    def look(module: Any, inputs: tuple[Any, ...], output: Any) -> None:
        states = output[0] if isinstance(output, tuple) else output
        if len(states) != rows or reached.is_set():
            return
        if not backward:
            wait()
        elif states.requires_grad:
            states.register_hook(wait)

    hook = bert.family.blocks[-1 if backward else 1].register_forward_hook(look)  # type: ignore[attr-defined]
    try:
        yield reached, goes_on
    finally:
        goes_on.set()
        hook.remove()


def long_forward(caller: Caller) -> verbs.ForwardRequest:
    generator = torch.Generator().manual_seed(3)
    return forward_request(
        caller.session, inputs={"message": torch.randn(LONG_ROWS, TOKENS, WIDTH, generator=generator)}
    )


@pytest.mark.parametrize("kind", ["forward", "backward"])
def test_a_short_call_goes_first_between_two_layers_of_a_long_one(
    open_desk: Callable[..., Desk], bert: FrozenTeacher, kind: str
) -> None:
    desk, order = open_desk(), list[str]()
    with Caller(desk.actor, "long") as long, Caller(desk.actor, "short") as short:
        own, _ = short.forward()
        with held(bert, LONG_ROWS, backward=kind == "backward") as (reached, goes_on):
            request: Any = long_forward(long)
            if kind == "backward":
                desk.scheduler.submit(desk.job(request)).result(20)
                request = backward_request(request)
            running = desk.scheduler.submit(desk.job(request))
            assert reached.wait(20)
            waiting = desk.scheduler.submit(desk.job(backward_request(own)))
            for name, future in (("long", running), ("short", waiting)):
                future.add_done_callback(lambda _, name=name: order.append(name))
            goes_on.set()
            assert waiting.result(20).grads["message"].abs().sum() > 0
            running.result(20)
        assert order == ["short", "long"]
        assert desk.count("teacher_batch_asides_total") == 1


def test_switched_off_everybody_waits_for_all_of_it(open_desk: Callable[..., Desk], bert: FrozenTeacher) -> None:
    desk, order = open_desk(step_aside=False), list[str]()
    with Caller(desk.actor, "long") as long, Caller(desk.actor, "short") as short:
        with held(bert, LONG_ROWS, backward=False) as (reached, goes_on):
            running = desk.scheduler.submit(desk.job(long_forward(long)))
            assert reached.wait(20)
            waiting = desk.scheduler.submit(desk.job(forward_request(short.session)))
            for name, future in (("long", running), ("short", waiting)):
                future.add_done_callback(lambda _, name=name: order.append(name))
            goes_on.set()
            waiting.result(20)
        assert order == ["long", "short"]
        assert desk.count("teacher_batch_asides_total") == 0


def test_a_failing_call_that_goes_first_hurts_nobody(open_desk: Callable[..., Desk], bert: FrozenTeacher) -> None:
    desk = open_desk()
    with Caller(desk.actor, "long") as long, Caller(desk.actor, "short") as short:
        request = long_forward(long)
        alone = desk.scheduler.submit(desk.job(request)).result(20)
        with held(bert, LONG_ROWS, backward=False) as (reached, goes_on):
            running = desk.scheduler.submit(desk.job(long_forward(long)))
            assert reached.wait(20)
            message = {"message": torch.full((2, 3, WIDTH), float("inf"))}
            waiting = desk.scheduler.submit(desk.job(forward_request(short.session, inputs=message)))
            goes_on.set()
            assert isinstance(waiting.exception(20), NonFiniteError)
            assert torch.equal(running.result(20).outputs["answer"], alone.outputs["answer"])
        assert desk.count("teacher_batch_asides_total") == 1


def _job(lane: str, tokens: int) -> Job:
    job = _LaneJob("forward", None, verbs.ForwardRequest(backward_follows=True), Call(), 1, tokens)
    job.lane, job.bucket = lane, "forward"
    return job


class _LaneJob(Job):
    """A job of a named lane."""

    lane = ""


def test_who_may_go_first() -> None:
    """Half the size at most, and then no further than the long one has come: a lane is not served more for being short."""
    live = LiveSettings(ServerConfig(model="tiny"))
    order = Order(live, Metrics(), Admission(live))
    long, other, equal = _job("long", 1000), _job("other", 100), _job("equal", 501)
    for job in (long, other, equal):
        order.arrived(job, 0.0)
    running = Batch((long,))
    order.take(Choice(running, 0.0, 1), 0.0)
    assert order.aside([equal], running, 0.75) is None, "too long"
    assert order.aside([], running, 0.75) is None
    for done, served in ((0.25, 2), (0.5, 5), (0.95, 9)):
        while (chosen := order.aside([other, equal], running, done)) is not None:
            assert chosen.batch.jobs == (other,)
            order.take(chosen, 0.0)
        assert order._counters.of("other") == 100 * served


def test_each_pause_knows_how_much_is_done(bert: FrozenTeacher) -> None:
    pauses, seen = Pauses(), list[float]()
    pauses.go_first = seen.append
    with pauses.opened():
        through(bert, 0, pauses)
    assert seen == pytest.approx([1 / 3, 2 / 3, 1 / 3, 2 / 3])


def test_a_forward_that_runs_again_is_charged_again() -> None:
    live = LiveSettings(ServerConfig(model="tiny"))
    order, job = Order(live, Metrics(), Admission(live)), _job("again", 600)
    order.arrived(job, 0.0)
    order.take(Choice(Batch((job,)), 0.0, 1), 0.0)
    job.run_again = True
    order.ran(Batch((job,)), 0.1)
    assert order._counters.of("again") == 2 * 600


def test_a_part_of_the_work_counts_as_its_share() -> None:
    pauses, seen = Pauses(), list[float]()
    pauses.go_first = seen.append
    with pauses.opened(), pauses.share(0.5, 1.0):
        pauses.after_layer(torch.zeros(1), 0.5)
    assert seen == [0.75]
