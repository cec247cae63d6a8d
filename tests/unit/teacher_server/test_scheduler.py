from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from teacher_server.models.split import FrozenTeacher
from teaching_protocol import verbs
from teaching_protocol.errors import CallCancelled, DeadlineExceeded, Draining, Overloaded, StaleEpoch
from tests.calls import Caller, backward_request, forward_request, in_s
from tests.integration.gate import poll
from tests.unit.teacher_server.desk import Desk


@pytest.fixture
def open_desk(bert: FrozenTeacher) -> Iterator[Callable[[int], Desk]]:
    desks: list[Desk] = []

    def build(permits: int = 8) -> Desk:
        desks.append(Desk(bert, permits))
        return desks[-1]

    yield build
    for desk in desks:
        desk.close()


Open = Callable[..., Desk]


def test_calls_of_one_session_run_in_the_order_they_came(open_desk: Open) -> None:
    desk = open_desk(32)
    done: list[str] = []
    with Caller(desk.actor, "a") as caller:
        desk.shut()
        futures = []
        for step in range(1, 5):  # each Backward needs its Forward, and each Step is the next one
            forward = forward_request(caller.session)
            step_request = verbs.StepRequest(caller.session, step, 0.1)
            for request in (forward, backward_request(forward), step_request):
                name = f"{type(request).__name__} {step}"
                futures.append(desk.scheduler.submit(desk.job(request)))
                futures[-1].add_done_callback(lambda _, name=name: done.append(name))
        desk.door.set()
        steps = [future.result(20) for future in futures][2::3]
    assert [reply.step for reply in steps] == [1, 2, 3, 4]
    kinds = ("ForwardRequest", "BackwardRequest", "StepRequest")
    assert done == [f"{kind} {step}" for step in range(1, 5) for kind in kinds]


def test_many_threads_of_one_session_are_all_answered(open_desk: Open) -> None:
    desk = open_desk(32)
    with Caller(desk.actor, "a") as caller, ThreadPoolExecutor(8) as pool:

        def exchange(_: int) -> float:
            forward, _reply = caller.forward()
            return float(caller.backward(forward).grads["message"].sum())

        found = list(pool.map(exchange, range(24)))
    assert len(set(found)) == 1


def test_what_frees_memory_goes_before_a_forward_that_came_first(open_desk: Open) -> None:
    desk = open_desk()
    done: list[str] = []
    with Caller(desk.actor, "a") as ann, Caller(desk.actor, "b") as bob, Caller(desk.actor, "c") as eve:
        ready, _ = ann.forward()
        desk.shut()
        blocker = desk.scheduler.submit(desk.job(forward_request(eve.session)))
        assert desk.busy.wait(20)
        first = desk.scheduler.submit(desk.job(forward_request(bob.session)))
        second = desk.scheduler.submit(desk.job(backward_request(ready)))
        first.add_done_callback(lambda _: done.append("forward"))
        second.add_done_callback(lambda _: done.append("backward"))
        desk.door.set()
        for future in (blocker, first, second):
            future.result(20)
    assert done == ["backward", "forward"]


def test_cancelled_and_expired_jobs_never_reach_the_model(open_desk: Open) -> None:
    desk = open_desk()
    with Caller(desk.actor, "a") as ann, Caller(desk.actor, "b") as bob:
        desk.shut()
        blocker = desk.scheduler.submit(desk.job(forward_request(ann.session)))
        assert desk.busy.wait(20)
        cancelled, short = in_s(20), in_s(0.01)
        jobs = [desk.job(forward_request(bob.session), call) for call in (cancelled, short, in_s(20))]
        futures = [desk.scheduler.submit(job) for job in jobs]
        cancelled.cancelled.set()
        poll(lambda: short.deadline is not None and time.monotonic() > short.deadline, "the deadline")
        desk.door.set()
        blocker.result(20)
        with pytest.raises(CallCancelled, match="went away"):
            futures[0].result(20)
        with pytest.raises(DeadlineExceeded, match="in the queue"):
            futures[1].result(20)
        futures[2].result(20)
        assert desk.runs == 2
        assert desk.count("teacher_rejected_total", reason="cancelled") == 1
        assert desk.count("teacher_rejected_total", reason="expired") == 1
    poll(lambda: desk.count("teacher_in_flight") == 0, "all permits are given back")


def test_without_a_permit_a_call_is_refused_at_once(open_desk: Open) -> None:
    desk = open_desk(2)
    with Caller(desk.actor, "a") as ann, Caller(desk.actor, "b") as bob:
        desk.shut()
        held = [desk.scheduler.submit(desk.job(forward_request(each.session))) for each in (ann, bob)]
        assert desk.busy.wait(20)
        assert desk.count("teacher_in_flight") == 2
        with pytest.raises(Overloaded, match="all 2 permits are taken; try again later") as failure:
            bob.forward()
        assert failure.value.retry_after_s >= 0.05
        renewed = desk.actor.renew(verbs.RenewRequest(bob.session), in_s(1))  # control does not wait behind work
        assert renewed.lease_s == 60
        assert desk.actor.describe(verbs.DescribeRequest(), in_s(1)).layers == 4
        desk.door.set()
        for future in held:
            future.result(20)
        poll(lambda: desk.count("teacher_in_flight") == 0, "the permits are given back")
        assert bob.forward()[1].outputs


def test_a_deadline_shorter_than_the_work(open_desk: Open) -> None:
    desk = open_desk()
    with Caller(desk.actor, "a") as ann:
        desk.shut()
        request = forward_request(ann.session)
        with pytest.raises(DeadlineExceeded, match="Forward was not done by its deadline; the server is busy"):
            desk.actor.forward(request, in_s(0.05))
        desk.door.set()
        reply = desk.actor.forward(request, in_s(20))  # the same call again: its reply, run once
        assert desk.runs == 1
        assert reply.outputs


def test_a_drain_finishes_what_was_admitted_and_refuses_the_rest(open_desk: Open) -> None:
    desk = open_desk()
    with Caller(desk.actor, "a") as ann, Caller(desk.actor, "b") as bob:
        desk.shut()
        admitted = desk.scheduler.submit(desk.job(forward_request(ann.session)))
        assert desk.busy.wait(20)
        assert desk.scheduler.drain(0.01) is False
        with pytest.raises(Draining, match="export your state and enrol elsewhere"):
            bob.forward()
        desk.door.set()
        assert desk.scheduler.drain(20) is True
        assert admitted.result(0).outputs


def test_a_step_whose_first_forward_was_admitted_is_made_to_its_end_in_a_drain(open_desk: Open) -> None:
    desk = open_desk()
    with Caller(desk.actor, "a") as ann:
        desk.shut()
        first = forward_request(ann.session)
        admitted = desk.scheduler.submit(desk.job(first))
        assert desk.busy.wait(20)
        assert desk.scheduler.drain(0.01) is False
        second = forward_request(ann.session)
        in_flight = desk.scheduler.submit(desk.job(second))  # a microbatch sent before the first was answered
        desk.door.set()
        assert desk.scheduler.drain(20) is True
        assert admitted.result(0).outputs
        assert in_flight.result(0).outputs
        third, _ = ann.forward()  # nothing is gathered yet
        for forward in (first, second, third):
            ann.backward(forward)
        assert ann.step(1).grad_norm > 0
        with pytest.raises(Draining):
            ann.forward()


def test_stopping_refuses_what_waits(open_desk: Open) -> None:
    desk = open_desk()
    with Caller(desk.actor, "a") as ann, Caller(desk.actor, "b") as bob:
        desk.shut()
        running = desk.scheduler.submit(desk.job(forward_request(ann.session)))
        assert desk.busy.wait(20)
        waiting = desk.scheduler.submit(desk.job(forward_request(bob.session)))
        with ThreadPoolExecutor(1) as pool:
            stopping = pool.submit(desk.scheduler.stop)
            poll(lambda: desk.scheduler._stopped, "the scheduler is told to stop")
            desk.door.set()
            stopping.result(20)
        assert running.result(0).outputs
        with pytest.raises(Draining, match="shut down before this call ran"):
            waiting.result(0)


def test_a_waiting_call_of_a_fenced_client_is_refused(open_desk: Open) -> None:
    desk = open_desk()
    with Caller(desk.actor, "a") as ann, Caller(desk.actor, "b") as bob:
        desk.shut()
        blocker = desk.scheduler.submit(desk.job(forward_request(bob.session)))
        assert desk.busy.wait(20)
        old = desk.scheduler.submit(desk.job(forward_request(ann.session)))
        resumed = desk.actor.enroll(verbs.EnrollRequest("a", resume=ann.session.session_id), in_s(5))
        desk.door.set()
        blocker.result(20)
        with pytest.raises(StaleEpoch, match="while this call waited"):
            old.result(20)
        ann.session = dataclasses.replace(ann.session, epoch=resumed.session.epoch)
        assert ann.forward()[1].outputs


def test_leaving_while_a_forward_runs_leaves_nothing_behind(open_desk: Open) -> None:
    desk = open_desk()
    ann = Caller(desk.actor, "a").__enter__()
    desk.shut()
    running = desk.scheduler.submit(desk.job(forward_request(ann.session)))
    assert desk.busy.wait(20)
    ann.__exit__()
    desk.door.set()
    running.result(20)
    assert desk.count("teacher_graph_cache_bytes") == 0
    assert len(desk.actor.sessions) == 0


def test_seconds_in_queue_and_engine_are_told(open_desk: Open) -> None:
    desk = open_desk()
    with Caller(desk.actor, "a") as ann:
        _, reply = ann.forward()
    assert reply.compute_s > 0
    assert reply.queue_s >= 0
    assert desk.count("teacher_queue_seconds_count", method="Forward") == 1
