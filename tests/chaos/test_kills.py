"""kill -9 of the teacher and of the student at random moments: the run ends with the bits of an unbroken one."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.chaos.world import (
    Ended,
    TeacherProcess,
    assert_same,
    chaos_config,
    doze,
    ended,
    student_process,
    wait_for_step,
)

SHORT = 2
LONG = pytest.param(20, marks=pytest.mark.chaos)
Models = Callable[[str], Path]
Whole = Callable[..., Ended]


@pytest.mark.parametrize("kills", [SHORT, LONG])
def test_the_teacher_is_killed(model_folder: Models, whole: Whole, tmp_path: Path, kills: int) -> None:
    rng, steps = random.Random(kills), 20 + 15 * kills
    with TeacherProcess(model_folder("bert")) as teacher:
        config = chaos_config(tmp_path, "broken", teacher.address, steps)
        with student_process(config) as student:
            step = 0
            for _ in range(kills):
                step = wait_for_step(config, student, step + rng.randrange(8))
                doze(rng, 0.05)
                teacher.kill()
                doze(rng, 0.2)
                teacher.start()
            broken = ended(config, student)
    assert_same(broken, whole(steps), steps)
    assert broken.result["recoveries"] == kills
    assert broken.result["replayed_steps"] <= 5 * kills
    assert broken.result["paused_s"] > 0


@pytest.mark.parametrize("kills", [SHORT, LONG])
def test_the_student_is_killed(model_folder: Models, whole: Whole, tmp_path: Path, kills: int) -> None:
    rng, steps = random.Random(kills), 20 + 15 * kills
    fields = {"training__checkpoint_every": 7}
    with TeacherProcess(model_folder("bert")) as teacher:
        config = chaos_config(tmp_path, "broken", teacher.address, steps, **fields)
        step = 0
        for kill in range(kills + 1):
            has_checkpoint = any((config.output / "checkpoints").glob("step-*"))
            with student_process(config, resume=has_checkpoint) as student:
                if kill == kills:
                    broken = ended(config, student)
                else:
                    step = wait_for_step(config, student, max(step, 7) + rng.randrange(7))
                    doze(rng, 0.05)
    assert_same(broken, whole(steps), steps)


@pytest.mark.parametrize("kills", [pytest.param(6, marks=pytest.mark.chaos)])
def test_both_are_killed(model_folder: Models, whole: Whole, tmp_path: Path, kills: int) -> None:
    """Teacher and student in turn, in one run; the student keeps its name, so that it waits for its own lease."""
    rng, steps = random.Random(kills), 20 + 20 * kills
    fields = {"training__checkpoint_every": 7, "teacher__student": "ann"}
    with TeacherProcess(model_folder("bert"), settings={"lease_s": 1.0}) as teacher:
        config = chaos_config(tmp_path, "broken", teacher.address, steps, **fields)
        step = 0
        for kill in range(kills + 1):
            with student_process(config, resume=kill > 0) as student:
                step = wait_for_step(config, student, max(step, 7) + rng.randrange(7))
                teacher.kill()
                doze(rng, 0.2)
                teacher.start()
                if kill == kills:
                    broken = ended(config, student)
                else:
                    step = wait_for_step(config, student, step + rng.randrange(7))
    assert_same(broken, whole(steps), steps)
