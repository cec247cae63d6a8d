from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from teacher_server.app import TeacherApp
from teacher_server.config import ServerConfig
from teacher_server.local import local_teacher
from teacher_server.metrics.usage import Failure, Taken, Usage
from teacher_server.models.split import FrozenTeacher
from teaching_protocol.errors import Draining, InvalidTensor, NonFiniteError, Overloaded, Quarantined, QuotaExceeded
from tests.calls import WIDTH, Caller, attempt


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_what_was_counted_is_told() -> None:
    clock = Clock()
    usage = Usage(clock)
    clock.now = 1005.0
    usage.ran(0.25, 0.5)
    usage.ran(0.25, 1.0)
    usage.charge(48)
    usage.moved(100, 0)
    usage.moved(0, 300)
    usage.stepped()
    assert usage.taken == Taken(1.5, 0.5, 48, 100, 300, calls=2, steps=1)
    assert (usage.opened, usage.last_call, usage.last_error, usage.step_times) == (1000.0, 1005.0, None, (1005.0,))


def test_a_value_told_does_not_change() -> None:
    usage = Usage()
    before = usage.taken
    usage.stepped()
    assert before.steps == 0


@pytest.mark.parametrize(
    ("error", "refused"),
    [
        (Overloaded("full", 1.0), 1),
        (QuotaExceeded("yours", 1.0), 1),
        (Quarantined("out", 1.0), 1),
        (Draining("down"), 1),
        (NonFiniteError("NaN"), 0),
    ],
)
def test_refusals_and_failures_are_told_apart(error: Exception, refused: int) -> None:
    usage = Usage(Clock())
    with pytest.raises(type(error)), usage.call(7):
        raise error
    assert (usage.taken.refused, usage.taken.failed, usage.taken.received_bytes) == (refused, 1 - refused, 7)
    assert usage.last_error == Failure(type(error).__name__, str(error), 1000.0)


def test_a_sentence_is_short_and_printable() -> None:
    usage = Usage()
    usage.erred(InvalidTensor("<b>\n\x1b[31m" + "x" * 5000))
    assert usage.last_error is not None
    assert len(usage.last_error.sentence) == 200
    assert usage.last_error.sentence.startswith("<b>??[31mx")
    assert usage.last_error.sentence.endswith("...")


@given(st.lists(st.floats(0.001, 20), max_size=200))
def test_steps_are_remembered_in_bounds_and_their_rate_is_near(gaps: list[float]) -> None:
    clock = Clock()
    usage = Usage(clock)
    times = []
    for gap in gaps:
        clock.now += gap
        usage.stepped()
        times.append(clock.now)
    assert usage.taken.steps == len(times)
    assert usage.step_times == tuple(times[-64:])
    recent = sum(clock.now - each <= 30 for each in times)
    assert usage.steps_per_s >= 0
    if recent < 64:
        assert usage.steps_per_s * max(min(30.0, clock.now - 1000.0), 0.001) == pytest.approx(recent)
    clock.now += 31
    assert usage.steps_per_s == 0


def test_a_fast_student_s_rate_is_that_of_its_ring() -> None:
    clock = Clock()
    usage = Usage(clock)
    for _ in range(500):
        clock.now += 0.01
        usage.stepped()
    assert usage.steps_per_s == pytest.approx(100)


def test_threads_lose_nothing() -> None:
    usage = Usage()

    def count(_: int) -> None:
        for _ in range(500):
            usage.ran(1.0, 2.0)
            usage.moved(3, 4)
            usage.erred(NonFiniteError("x"))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(count, range(8)))
    assert usage.taken == Taken(8000.0, 4000.0, 0.0, 12000, 16000, calls=4000, failed=4000)


def test_totals_add_up_field_by_field() -> None:
    one = Taken(1, 2, 3, 4, 5, 6, 7, 8, 9)
    assert one + one == Taken(2, 4, 6, 8, 10, 12, 14, 16, 18)


def test_a_teacher_in_one_s_own_process_counts_what_it_runs(bert: FrozenTeacher) -> None:
    teacher = local_teacher(bert, max_tokens=32)
    with Caller(teacher, "ann") as caller:
        caller.backward(caller.forward()[0])
        caller.step(1)
        taken = teacher.sessions.live()[0].usage.taken
    assert (taken.calls, taken.steps) == (3, 1)
    assert taken.compute_s > 0


def test_a_served_session_s_usage_agrees_with_the_server_s_own_counts(bert: FrozenTeacher) -> None:
    """Real server, real wire: what two sessions took adds up to what the server did."""
    config = ServerConfig(model="tiny", port=0, metrics_port=-1, threads=1)
    with TeacherApp(config, bert) as app:
        count = app.metrics.registry.get_sample_value

        def totals() -> tuple[float, ...]:
            methods = ("Forward", "Backward", "Step")
            seconds = sum(count("teacher_compute_seconds_sum", {"method": each}) or 0 for each in methods)
            waited = sum(count("teacher_queue_seconds_sum", {"method": each}) or 0 for each in methods)
            tokens = sum(count("teacher_served_tokens_total", {"method": each}) or 0 for each in methods)
            return seconds, waited, tokens

        before = totals()
        address = f"127.0.0.1:{app.port}"
        with Caller(address, "ann") as ann, Caller(address, "bob") as bob:
            for step, caller in ((1, ann), (1, bob), (2, bob)):
                caller.backward(caller.forward()[0])
                caller.step(step)
            bad = {"message": torch.full((1, 1, WIDTH), float("nan"))}
            assert isinstance(attempt(lambda: ann.forward(inputs=bad)), NonFiniteError)
            found = {each.student: each.usage for each in app.actor.sessions.live()}
            taken = found["ann"].taken + found["bob"].taken
            after = totals()
        gone = [now - then for now, then in zip(after, before, strict=True)]
        assert (taken.compute_s, taken.queue_s, taken.tokens) == pytest.approx(gone)
        assert (found["ann"].taken.steps, found["bob"].taken.steps) == (1, 2)
        assert (found["ann"].taken.calls, found["bob"].taken.calls) == (3, 6), (
            "what is refused at the door runs nowhere"
        )
        assert min(taken.received_bytes, taken.sent_bytes) > 6 * 2 * 3 * WIDTH * 2, "messages and gradients"
        assert found["ann"].last_error is not None
        assert found["ann"].last_error.kind == "NonFiniteError"
        assert found["bob"].last_error is None
        assert taken.failed == 1
