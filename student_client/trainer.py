"""The training loop: batches, one step of both sides, validation, checkpoints; knows no method's mathematics.

Loss scaling (fp16): the teacher's codec gathers gradients of the scaled loss, so its step divides by the scale they
were made with. A step that the scaler skips is a step of nothing over there, with learning rate and gradients times 0:
what was gathered is gone, and the step numbers of both sides stay equal. A teacher that refuses a gradient because it
overflowed is an overflow like any other: the student's gradients are made infinite, and the scaler skips.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import nn

from student_client.acceleration import build_accelerator, exact_algorithms, random_state, set_random_state
from student_client.checkpoints import Checkpoint, load_checkpoint, replace_folder, save_checkpoint
from student_client.config import RunConfig, TrainingConfig
from student_client.data import Batch, Split, TaskData, batches, teacher_view
from student_client.evaluate import Scores, evaluate
from student_client.interrupts import Interrupts
from student_client.methods import Methods, Outcome
from student_client.progress import Journal, Means, Progress
from student_client.remote import Teacher
from student_client.students import Student, load_student
from teaching_protocol.errors import ConfigError, NonFiniteError, StateMismatch

__all__ = ["Position", "Result", "Trainer", "schedule_factor"]

_COLLAPSED = 0.05  # message variance below which messages count as constant; a collapsed run shows 0.003


@dataclass
class Position:
    """Where a run stands between two steps; all of it travels with the checkpoint.

    `batch` microbatches of `epoch` are done, `waited` validations have passed since the best one.
    """

    step: int = 0
    epoch: int = 0
    batch: int = 0
    seconds: float = 0.0
    teacher_s: float = 0.0
    best: float | None = None
    best_step: int = 0
    waited: int = 0
    warned: bool = False


@dataclass(frozen=True)
class Result:
    """What came of a run, as written to result.json; `test` is the best student's, scored once."""

    method: str
    metric: str
    validation: float
    test: float
    test_loss: float
    test_macro_f1: float | None
    best_step: int
    parameters: int
    codec_parameters: int
    steps: int
    epochs: int
    wall_s: float
    teacher_s: float
    device: str
    seed: int


class Trainer:
    """Trains a student by a method, against an enrolled teacher where the method asks one.

    Args:
        config: of the run; its `output` receives config.json, metrics.jsonl, checkpoints/, student/, result.json.
        data: with the three splits.
        student: trained in place.
        method: its codec is trained by the same optimizer, and clipped on its own.
        teacher: enrolled; it steps with the student, its learning rate on the same schedule.
        progress: where to report; None reports to the standard output.
    """

    def __init__(
        self,
        config: RunConfig,
        data: TaskData,
        student: Student,
        method: Methods,
        teacher: Teacher | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.config, self.training, self.data, self.teacher = config, config.training, data, teacher
        self.name = "+".join(config.method.names)
        self.accelerator = build_accelerator(config.training, config.output)
        self.student: Student = student.to(self.accelerator.device)
        self.method: Methods = method.to(self.accelerator.device)
        self.optimizer = self.accelerator.prepare_optimizer(_optimizer(student, method, config.training))
        self.position = Position()
        self.interrupts = Interrupts()
        self.progress = Progress(self.name) if progress is None else progress
        learns_from_all = method.uses_unlabelled and config.method.is_active
        self.rows = _Rows(data.train if learns_from_all else _labelled(data.train), student, config)
        self.total_steps = _total_steps(self.training, len(self.rows.split))
        self._journal = Journal(config.output / "metrics.jsonl")
        self._means = Means()
        self._validation_view = student.view(data.validation)
        self._saved_step = -1

    @property
    def is_done(self) -> bool:
        """Whether all steps are done or the patience has run out."""
        impatient = self.training.patience is not None and self.position.waited >= self.training.patience
        return impatient or self.position.step >= self.total_steps

    def run(self, steps: int | None = None) -> Result | None:
        """Trains to the end, or for at most `steps` more steps, or until a signal; both leave a checkpoint.

        Returns:
            the result; None if the run is not at its end and can be resumed.

        Raises:
            NonFiniteError: a loss or gradient that is no number.
            TeachingError: the teacher cannot go on. The last checkpoint can be resumed.
        """
        stop = self.total_steps if steps is None else self.position.step + steps
        with self.interrupts, exact_algorithms(self.training.deterministic):
            self._open()
            try:
                while not (self.is_done or self.interrupts.signal or self.position.step >= stop):
                    self._step()
                    self._report()
                self.save()
                return self._finish() if self.is_done else None
            finally:
                self.progress.close()
                self.accelerator.end_training()

    def save(self) -> None:
        """Writes a checkpoint of both sides, unless this step has one."""
        if self._saved_step == self.position.step:
            return
        best = self.config.output / "student"
        checkpoint = Checkpoint(
            self.position.step,
            self.config.identity(),
            {"position": asdict(self.position), "scaler": self._scaler_state()},
            {
                "student": self.student.state_dict(),
                "method": self.method.state_dict(),
                "optimizer": _flat_optimizer(self.optimizer.state_dict()),
                "random": random_state(),
            },
            self.teacher.export_state() if self.teacher is not None else None,
            best if self.position.best_step else None,
        )
        save_checkpoint(self.config.output / "checkpoints", checkpoint)
        self._saved_step = self.position.step

    def resume(self) -> None:
        """Puts both sides where the newest whole checkpoint of the output folder has them.

        Raises:
            ConfigError: there is none, or it is of another configuration.
            StateMismatch: it does not fit this student, method or teacher.
        """
        found = load_checkpoint(self.config.output / "checkpoints", self.config.identity())
        try:
            self.student.load_state_dict(found.tensors["student"])
            self.method.load_state_dict(found.tensors["method"])
            self.optimizer.load_state_dict(_whole_optimizer(self.optimizer.state_dict(), found.tensors["optimizer"]))
            if self.accelerator.scaler is not None:
                self.accelerator.scaler.load_state_dict(found.facts["scaler"])
            self.position = Position(**found.facts["position"])
            set_random_state(found.tensors["random"])
        except (RuntimeError, KeyError, TypeError, ValueError) as error:
            raise StateMismatch(f"the checkpoint of step {found.step} does not fit this run: {error}") from error
        if self.teacher is not None and found.session is not None:
            self.teacher.import_state(found.session)
        if found.best is not None:
            _restore(found.best, self.config)
        self._saved_step = found.step

    def _open(self) -> None:
        output = self.config.output
        try:
            output.mkdir(parents=True, exist_ok=True)
            (output / "config.json").write_text(self.config.model_dump_json(indent=2) + "\n", encoding="utf-8")
            self._journal.rewind(self.position.step)
        except OSError as error:
            raise ConfigError(f"output: received {output}, expected a folder to write to ({error})") from error
        if self.training.tensorboard:
            self.accelerator.init_trackers("tensorboard")
        if self.position.step == 0:
            torch.manual_seed(self.training.seed)
        self.student.train()
        self.method.train()
