"""A rolling restart under load: both teachers are replaced, one after the other, while students train; no step is lost."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.chaos.world import (
    Ended,
    TeacherProcess,
    assert_same,
    chaos_config,
    ended,
    log_of,
    student_process,
    unbroken,
    wait_for_step,
)

STEPS = 70
NAMES = ("ann", "bob", "eve")
Models = Callable[[str], Path]


@pytest.fixture
def teachers(model_folder: Models) -> Iterator[tuple[TeacherProcess, TeacherProcess]]:
    """Two replicas of one model, each the command in a process of its own."""
    settings = {"handoff_s": 20.0}
    with ExitStack() as stack:
        first, second = (
            stack.enter_context(TeacherProcess(model_folder("bert"), settings=settings, is_command=True))
            for _ in range(2)
        )
        for each in (first, second):
            each.wait_until_it_serves()
        yield first, second


@pytest.fixture
def whole(model_folder: Models, tmp_path: Path) -> Ended:
    return unbroken(model_folder("bert"), tmp_path, STEPS)


def test_both_teachers_are_replaced_and_no_step_is_lost(
    teachers: tuple[TeacherProcess, TeacherProcess], whole: Ended, tmp_path: Path
) -> None:
    """As an orchestrator does it: SIGTERM, wait for the end, start anew, wait until it serves, the next one."""
    first, second = teachers
    orders = ((first, second), (second, first), (first, second))
    configs = [
        chaos_config(tmp_path, name, here.address, STEPS, teacher__addresses=(there.address,))
        for name, (here, there) in zip(NAMES, orders, strict=True)
    ]
    with ExitStack() as stack:
        students = [stack.enter_context(student_process(config)) for config in configs]
        for replaced, more_than in ((first, 9), (second, 29)):
            for config, student in zip(configs, students, strict=True):
                wait_for_step(config, student, more_than)
            replaced.terminate()
            assert replaced.exit_code() == 0, "it ended by itself, all its students gone"
            replaced.start()
            replaced.wait_until_it_serves()
        found = [ended(config, student) for config, student in zip(configs, students, strict=True)]
    for broken in found:
        assert_same(broken, whole, STEPS)
        assert (broken.result["recoveries"], broken.result["replayed_steps"]) == (0, 0)
    for config, broken, (here, _) in zip(configs, found, orders, strict=True):  # the second's may be at its end by then
        assert here is second or broken.result["moves"] >= 1, log_of(config)
