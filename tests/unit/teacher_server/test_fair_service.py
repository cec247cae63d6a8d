"""Fairness and waiting where they happen: a real engine thread, real callers, counted and not timed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import torch

from teacher_server.models.split import FrozenTeacher
from teaching_protocol.errors import Overloaded
from tests.calls import WIDTH, Caller, backward_request, forward_request, in_s
from tests.integration.gate import poll
from tests.unit.teacher_server.desk import Desk


@pytest.fixture
def open_desk(bert: FrozenTeacher) -> Iterator[Callable[..., Desk]]:
    with ExitStack() as stack:

        def build(**settings: Any) -> Desk:
            desk = Desk(bert, **settings)
            stack.callback(desk.close)
            return desk

        yield build


def sized(session: Any, rows: int) -> Any:
    return forward_request(session, inputs={"message": torch.zeros(rows, 4, WIDTH)})


def test_two_backlogged_sessions_are_served_the_same_tokens_whatever_they_send(open_desk: Callable[..., Desk]) -> None:
    desk = open_desk(permits=400, batch_tokens=64)
    served: list[tuple[str, int]] = []
    with Caller(desk.actor, "polite") as polite, Caller(desk.actor, "flood") as flood:
        desk.shut()
        futures = []
        for caller, rows, count in ((flood, 4, 60), (polite, 1, 120)):  # 960 tokens against 480
            for _ in range(count):
                future = desk.scheduler.submit(desk.job(sized(caller.session, rows)))
                future.add_done_callback(lambda _, who=caller.student, tokens=4 * rows: served.append((who, tokens)))
                futures.append(future)
        desk.door.set()
        for future in futures:
            future.result(60)
    tokens = {"polite": 0, "flood": 0}
    for who, count in served:
        tokens[who] += count
        if tokens["polite"] == 480:
            break
        assert abs(tokens["polite"] - tokens["flood"]) <= 64 + 2 * 16, "one ran ahead of the other"
    assert tokens["flood"] >= 480 - 64 - 2 * 16


def test_no_call_waits_for_more_than_two_jobs_of_a_flood(open_desk: Callable[..., Desk]) -> None:
    desk = open_desk(permits=64, batch_tokens=64)
    done, ending = [0], threading.Event()

    def flood(caller: Caller) -> None:
        while not ending.is_set():
            try:
                forward = sized(caller.session, 4)
                desk.actor.forward(forward, in_s(20))
                done[0] += 1
                caller.backward(forward)
                done[0] += 1
            except Overloaded as error:
                ending.wait(error.retry_after_s)

    waited = []
    with Caller(desk.actor, "flood") as hostile, Caller(desk.actor, "polite") as polite, ThreadPoolExecutor(20) as pool:
        floods = [pool.submit(flood, hostile) for _ in range(20)]
        poll(lambda: done[0] > 10, "the flood is on")
        for _ in range(30):
            forward = sized(polite.session, 1)
            for verb, request in ((desk.actor.forward, forward), (desk.actor.backward, backward_request(forward))):
                before = done[0]
                verb(request, in_s(20))  # type: ignore[operator]
                waited.append(done[0] - before)
        ending.set()
        for future in floods:
            future.result(20)
    # one that runs already, a Backward before it, and what is done before this thread is awake again
    assert sorted(waited)[len(waited) * 9 // 10] <= 4, waited
    assert done[0] > 20, "the flood was starved instead"


@contextmanager
def students(desk: Desk, count: int, think_s: float) -> Iterator[None]:
    """Students in loops: think, Forward, think, Backward, Step; until the block ends."""
    ending = threading.Event()

    def train(number: int) -> None:
        with Caller(desk.actor, f"student-{number}") as caller:
            step = 0
            while not ending.wait(think_s):
                step += 1
                forward, _ = caller.forward()
                time.sleep(think_s)
                caller.backward(forward)
                caller.step(step)

    with ThreadPoolExecutor(count) as pool:
        running = [pool.submit(train, number) for number in range(count)]
        try:
            yield
        finally:
            ending.set()
        for future in running:
            future.result(60)


def merged(desk: Desk, batches: int, skip: int = 30) -> float:
    """Students a batch, Forward and Backward together, once they had time to find each other."""

    def seen(what: str) -> float:
        names = ("Forward", "Backward")
        return sum(desk.count(f"teacher_batch_students_{what}", method=name) for name in names)

    poll(lambda: seen("count") >= skip, "the students have begun", 60)
    count, total = seen("count"), seen("sum")
    poll(lambda: seen("count") >= count + batches, "they have made some steps", 60)
    return (seen("sum") - total) / (seen("count") - count)


def test_waiting_brings_students_together_that_a_greedy_queue_keeps_apart(open_desk: Callable[..., Desk]) -> None:
    found = {}
    for linger in (False, True):
        desk = open_desk(permits=32, busy_s=0.03, linger=linger, linger_s=0.2, linger_share=1.0)
        with students(desk, 4, think_s=0.003):
            found[linger] = merged(desk, 50)
        desk.close()
        if not linger:
            assert desk.count("teacher_batch_linger_seconds_sum", method="Forward") == 0
    assert found[True] > found[False] + 0.5, found


def test_nobody_waits_for_who_stalled_or_left(open_desk: Callable[..., Desk]) -> None:
    desk = open_desk(permits=32, linger_s=5.0, linger_share=1.0, busy_s=0.005)
    with Caller(desk.actor, "stalled") as stalled, Caller(desk.actor, "busy") as busy:
        for step in range(1, 6):
            for caller in (stalled, busy):
                caller.backward(caller.forward()[0])
                caller.step(step)
        gone = Caller(desk.actor, "gone").__enter__()
        for step in range(1, 6):
            gone.backward(gone.forward()[0])
            gone.step(step)
        gone.__exit__()
        poll(lambda: desk.scheduler._order._rhythm.expected(time.monotonic()) == [], "nobody is expected any more")
        before = desk.count("teacher_batch_linger_seconds_sum", method="Forward")
        busy.forward()
        assert desk.count("teacher_batch_linger_seconds_sum", method="Forward") == before


def test_what_is_known_of_a_session_goes_with_it(open_desk: Callable[..., Desk]) -> None:
    desk = open_desk(permits=32)
    for number in range(5):
        with Caller(desk.actor, f"student-{number}") as caller:
            caller.backward(caller.forward()[0])
            caller.step(1)
    order = desk.scheduler._order
    assert len(order._counters) == len(order._rhythm) == len(order._quarantine) == 0
    poll(lambda: desk.count("teacher_in_flight") == 0, "all permits are back")
    assert not order.under_way
