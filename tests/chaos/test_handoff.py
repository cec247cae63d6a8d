"""Rolling restarts: SIGTERM drains, students take their state along, and no step fails or is made twice."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest

from student_client import RemoteTeacher
from student_client.config import RunConfig
from teaching_protocol.errors import Draining, TeachingError
from tests.calls import WIDTH, Caller, attempt
from tests.chaos.world import (
    Ended,
    TeacherProcess,
    assert_same,
    chaos_config,
    ended,
    health,
    log_of,
    student_process,
    wait_for_step,
)
from tests.integration.gate import poll

STEPS = 50
Models = Callable[[str], Path]
Whole = Callable[..., Ended]


def assert_moved_once(config: RunConfig, found: Ended) -> None:
    """A planned move is no loss: counted apart, in the result and in the last record."""
    counts = ("moves", "recoveries", "replayed_steps")
    assert [found.result[each] for each in counts] == [1, 0, 0]
    records = (config.output / "metrics.jsonl").read_text().splitlines()
    assert json.loads(records[-1])["moves"] == 1


def send(process: ForkServerProcess, sign: signal.Signals) -> None:
    assert process.pid is not None
    os.kill(process.pid, sign)


@pytest.mark.parametrize("accumulation", [1, pytest.param(3, marks=pytest.mark.chaos)])
def test_students_move_to_another_address(
    model_folder: Models, whole: Whole, tmp_path: Path, accumulation: int
) -> None:
    """Two students of one server that drains; the other server has a place for both."""
    model, patient = model_folder("bert"), {"handoff_s": 60.0, "lease_s": 60.0}
    fields = {"training__accumulation": accumulation} if accumulation > 1 else {}
    with ExitStack() as stack:
        first, second = (
            stack.enter_context(TeacherProcess(model, is_command=True, settings=patient)) for _ in range(2)
        )
        configs = [
            chaos_config(tmp_path, name, first.address, STEPS, teacher__addresses=(second.address,), **fields)
            for name in ("ann", "bob")
        ]
        for teacher in (first, second):
            teacher.wait_until_it_serves()  # or a student begins at the second one, which serves, too
        students = [stack.enter_context(student_process(config)) for config in configs]
        for config, student in zip(configs, students, strict=True):
            wait_for_step(config, student, 11)
            send(student, signal.SIGSTOP)  # or the one ahead might reach its end before the other one is here
        first.terminate()
        for student in students:
            send(student, signal.SIGCONT)
        assert first.exit_code() == 0
        found = [ended(config, student) for config, student in zip(configs, students, strict=True)]
    for config, broken in zip(configs, found, strict=True):
        assert_same(broken, whole(STEPS, **fields), STEPS)
        assert_moved_once(config, broken)
        said = log_of(config)
        assert f"the student has moved from {first.address} to {second.address}" in said
        assert "nothing is lost, no step is made again" in said
        assert "the teacher is lost" not in said


def test_a_student_waits_for_the_restart(model_folder: Models, whole: Whole, tmp_path: Path) -> None:
    with TeacherProcess(model_folder("bert"), is_command=True) as teacher:
        config = chaos_config(tmp_path, "broken", teacher.address, STEPS)
        with student_process(config) as student:
            wait_for_step(config, student, 11)
            teacher.terminate()
            assert teacher.exit_code() == 0
            teacher.start()
            broken = ended(config, student)
    assert_same(broken, whole(STEPS), STEPS)
    assert_moved_once(config, broken)
    assert "the teacher serves again" in log_of(config)


@pytest.fixture
def patient_teacher(model_folder: Models) -> TeacherProcess:
    """It would leave its students a minute to go."""
    return TeacherProcess(model_folder("bert"), is_command=True, settings={"handoff_s": 60.0, "lease_s": 60.0})


def test_while_it_drains_a_step_that_has_begun_is_finished_and_nothing_new(patient_teacher: TeacherProcess) -> None:
    with patient_teacher as teacher:
        teacher.wait_until_it_serves()
        names = ("begun", "asked", "idle")
        with ExitStack() as stack:
            begun, asked, idle = (stack.enter_context(Caller(teacher.address, name)) for name in names)
            first, _ = begun.forward()
            begun.backward(first)
            open_one, _ = asked.forward()  # its Backward is to come
            teacher.terminate()
            poll(lambda: health(teacher.port) == 2, "it says NOT_SERVING")
            poll(lambda: isinstance(attempt(idle.forward), Draining), "nothing new is begun")
            with pytest.raises(Draining, match="opens no session; enrol elsewhere"):
                RemoteTeacher(teacher.address, student="new", message_width=WIDTH, patience_s=0.1).enroll()
            again, _ = begun.forward()  # a second microbatch of the same step
            begun.backward(again)
            also, _ = asked.forward()
            for forward in (open_one, also):
                asked.backward(forward)
            for caller in (begun, asked):
                assert caller.step(1).grad_norm > 0
                assert caller.export()
                with pytest.raises(Draining):
                    caller.forward()
        assert teacher.exit_code() == 0, "when the last student has left, well before the limit"


def test_a_second_signal_ends_it_at_once(patient_teacher: TeacherProcess) -> None:
    with patient_teacher as teacher:
        teacher.wait_until_it_serves()
        caller = Caller(teacher.address, "stays").__enter__()
        began = time.monotonic()
        teacher.terminate()
        poll(lambda: health(teacher.port) == 2, "it drains")
        teacher.terminate()
        assert teacher.exit_code() == 1
        assert time.monotonic() - began < 30
        assert isinstance(attempt(caller.forward), TeachingError)
        caller.teacher.close()


def test_the_limit_ends_it_too(model_folder: Models) -> None:
    with TeacherProcess(model_folder("bert"), is_command=True, settings={"handoff_s": 0.3}) as teacher:
        teacher.wait_until_it_serves()
        caller = Caller(teacher.address, "stays").__enter__()
        teacher.terminate()
        assert teacher.exit_code() == 0
        caller.teacher.close()
