"""A run whose teacher in this process is lost: what it does until it is back, and if it does not come back."""

from __future__ import annotations

import io
import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from student_client.config import RunConfig
from student_client.reporting.progress import Progress
from student_client.teachers.members import Member
from student_client.teachers.remote import InProcessTeacher
from student_client.training.checkpoints import checkpoint_folders, load_checkpoint
from student_client.training.runs import open_run
from student_client.training.trainer import Trainer
from teacher_server.actor import TeacherActor
from teacher_server.local import local_teacher
from teaching_protocol.errors import OutOfMemory, TeacherUnavailable
from tests.unit.student_client.run_setup import quiet, run_config
from tests.unit.student_client.test_absence import take_down

Teach = Callable[[], TeacherActor]


@pytest.fixture
def teach(model_folder: Callable[[str], Path]) -> Teach:
    folder = model_folder("bert")
    return lambda: local_teacher(str(folder), device="cpu", entry=1, exit=3, deterministic=True)


def config_of(folder: Path, output: str, method: str = "talking", **fields: Any) -> RunConfig:
    known = {"training__rewind_steps": 3, "training__evaluate_every": 10, "training__checkpoint_every": 10}
    return run_config(folder, output, method, **known | fields)


def run(
    config: RunConfig, teacher: TeacherActor, harm: Callable[[Trainer], None] | None = None, at: int = 8
) -> Trainer:
    """Trains to the end; before step `at` + 1 something is done to the run."""
    with open_run(config, teachers=[teacher], progress=quiet()) as trainer:
        if harm is not None:
            before_step(trainer, at, harm)
        assert trainer.run() is not None
        trainer.teachers.export_states()
    return trainer


def before_step(trainer: Trainer, at: int, harm: Callable[[Trainer], None]) -> None:
    """Does something once to a run that has made `at` steps."""
    take, harms = trainer.steps.take, [harm]

    def taken(done: int, watch: Any) -> dict[str, float]:
        if done == at and harms:
            harms.pop()(trainer)
        return take(done, watch)

    trainer.steps.take = taken  # type: ignore[method-assign]


def same(one: Trainer, other: Trainer) -> bool:
    pairs = [(one.student, other.student), (one.method, other.method)]
    found = [(a.state_dict(), b.state_dict()) for a, b in pairs]
    weights = all(torch.equal(value, b[name]) for a, b in found for name, value in a.items())
    return weights and one.teachers[0].state == other.teachers[0].state


@pytest.mark.parametrize("budget", [2**30, 0])
def test_a_lease_that_ran_out(tmp_path: Path, teach: Teach, budget: int) -> None:
    """With cuts in memory, and with none: then they are checkpoints."""
    whole = run(config_of(tmp_path, "whole"), teach())
    teacher = teach()

    def lapse(trainer: Trainer) -> None:
        teacher.end(teacher.sessions.live()[0], "lease")

    config = config_of(tmp_path, "broken", training__rewind_bytes=budget)
    broken = run(config, teacher, lapse)
    assert same(broken, whole)
    assert broken.position.losses.recoveries == 1
    assert broken.position.losses.replayed_steps == 2, "from step 8 back to the cut of step 6"


def test_a_one_way_run_makes_no_step_again(tmp_path: Path, teach: Teach) -> None:
    """It has no state over there: the step that failed is all that is lost."""
    whole = run(config_of(tmp_path, "whole", "rkd"), teach())
    teacher = teach()

    def lapse(trainer: Trainer) -> None:
        teacher.end(teacher.sessions.live()[0], "lease")

    broken = run(config_of(tmp_path, "broken", "rkd"), teacher, lapse)
    assert same(broken, whole)
    assert (broken.position.losses.recoveries, broken.position.losses.replayed_steps) == (1, 0)


def test_a_device_without_room_for_a_while_is_a_pause(tmp_path: Path, teach: Teach) -> None:
    """Three calls in a row find none, and the run says once that the teacher is lost and once that it is back."""
    whole = run(config_of(tmp_path, "whole"), teach())
    teacher, said, refused = teach(), io.StringIO(), []

    def full(*_: Any) -> None:
        if len(refused) < 6:  # each call is tried twice by the teacher itself
            refused.append(True)
            raise torch.OutOfMemoryError("no room")

    def fill(trainer: Trainer) -> None:
        teacher._engine.teacher.family.blocks[1].register_forward_pre_hook(full)

    with open_run(config_of(tmp_path, "broken"), teachers=[teacher], progress=Progress("run", file=said)) as trainer:
        before_step(trainer, 8, fill)
        result = trainer.run()
        trainer.teachers.export_states()
    assert same(trainer, whole)
    assert len(refused) == 6
    assert result is not None
    assert result.recoveries == said.getvalue().count("the teacher is lost after step") == 3
    assert said.getvalue().count("the teacher is there again") == 3
    records = [json.loads(line) for line in (tmp_path / "broken" / "metrics.jsonl").read_text().splitlines()]
    assert records[-1]["recoveries"] == 3


def test_patience_is_for_progress(tmp_path: Path, teach: Teach) -> None:
    """A call that fails whenever it is made again comes back at once each time, and yet ends the run."""
    teacher = teach()

    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("no room")

    def fill(trainer: Trainer) -> None:
        teacher._engine.teacher.family.blocks[1].register_forward_pre_hook(full)

    config = config_of(tmp_path, "run", teacher__patience_s=0.8)
    with pytest.raises(
        TeacherUnavailable, match=r"did not come back within 0\.8 s \(.*has no room.*teacher\.patience_s"
    ) as gone:
        run(config, teacher, fill)
    assert isinstance(gone.value.__cause__, OutOfMemory)


def test_giving_up_leaves_the_newest_cut(tmp_path: Path, teach: Teach) -> None:
    config = config_of(tmp_path, "run", teacher__patience_s=0.2)
    whole = run(config_of(tmp_path, "whole"), teach())
    with pytest.raises(TeacherUnavailable, match=r"did not come back within 0\.2 s"):
        run(config, teach(), lambda trainer: take_down(trainer.teachers[0]))
    assert load_checkpoint(config.output / "checkpoints", config.identity()).step == 6
    with open_run(config, teachers=[teach()], progress=quiet(), resume=True) as trainer:
        trainer.run()
        trainer.teachers.export_states()
    assert same(trainer, whole)


def test_without_patience_the_error_itself_ends_the_run(tmp_path: Path, teach: Teach) -> None:
    config = config_of(tmp_path, "run", teacher__patience_s=0)
    with pytest.raises(TeacherUnavailable, match="no teacher answers at"):
        run(config, teach(), lambda trainer: take_down(trainer.teachers[0]))


class _Interrupting(io.StringIO):
    """An output that raises a signal when the teacher is said to be lost."""

    def write(self, text: str) -> int:
        if "is lost" in text:
            signal.raise_signal(signal.SIGTERM)
        return super().write(text)


def test_a_signal_while_waiting_leaves_the_newest_cut(tmp_path: Path, teach: Teach) -> None:
    config = config_of(tmp_path, "run")
    with open_run(config, teachers=[teach()], progress=Progress("run", file=_Interrupting())) as trainer:
        before_step(trainer, 8, lambda trainer: take_down(trainer.teachers[0]))
        assert trainer.run() is None
        assert trainer.interrupts.signal == signal.SIGTERM
        assert trainer.position.step == 6
    assert load_checkpoint(config.output / "checkpoints", config.identity()).step == 6


def test_tensorboard_shows_each_step_once(tmp_path: Path, teach: Teach) -> None:
    """After a recovery in the process, and after a process that died with steps behind its last checkpoint."""
    fields = {"training__tensorboard": True, "training__log_every": 1, "training__checkpoint_every": 5}
    teacher = teach()

    def lapse(trainer: Trainer) -> None:
        teacher.end(teacher.sessions.live()[0], "lease")

    config = config_of(tmp_path, "broken", **fields)
    with open_run(config, teachers=[teacher], progress=quiet()) as trainer:
        before_step(trainer, 8, lapse)
        trainer.run(13)
        assert trainer.position.losses.replayed_steps == 2
    shutil.rmtree(checkpoint_folders(config.output / "checkpoints")[-1])  # as if killed before it was written
    with open_run(config, teachers=[teach()], progress=quiet(), resume=True) as trainer:
        assert trainer.position.step == 10
        trainer.run()
    records = [json.loads(line) for line in (config.output / "metrics.jsonl").read_text().splitlines()]
    shown = EventAccumulator(str(config.output / "tensorboard"), size_guidance={"scalars": 0}).Reload().Scalars("loss")
    assert [each.step for each in shown] == [each["step"] for each in records] == list(range(1, 21))
    assert [each.value for each in shown] == pytest.approx([each["loss"] for each in records])


def test_a_member_goes_back_under_the_next_epoch(teach: Teach) -> None:
    member = Member(InProcessTeacher(teach(), student="ann", message_width=8), ("text",))
    member.join()
    state = member.teacher.export_state()
    member.teacher.step(lr=0.1)
    member.go_back(state)
    assert member.teacher.session.epoch == 3, "one for taking it over, one for the state"
    assert (member.teacher.export_state(), member.teacher.steps) == (state, 0)
    member.leave()
