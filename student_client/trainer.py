"""The training loop: steps, validation, the best student, checkpoints; knows no method's mathematics."""

from __future__ import annotations

import shutil
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import nn

from student_client.acceleration import (
    build_accelerator,
    compute_threads,
    exact_algorithms,
    random_state,
    set_random_state,
)
from student_client.checkpoints import Checkpoint, load_checkpoint, replace_folder, save_checkpoint
from student_client.config import RunConfig
from student_client.evaluate import Scores, evaluate
from student_client.interrupts import Interrupts
from student_client.methods import Methods, Outcome
from student_client.progress import Journal, Progress, Records
from student_client.result import Result
from student_client.steps import Steps
from student_client.stream import Place
from student_client.teachers import Account, Teachers
from student_models import Student, load_student
from task_data import TaskData
from teaching_protocol.errors import ConfigError, StateMismatch

__all__ = ["Position", "Trainer"]


@dataclass
class Position:
    """Where a run stands between two steps; all of it travels with the checkpoint.

    `waited` validations have passed since the best one, which was `best` after step `best_step`.
    """

    step: int = 0
    seconds: float = 0.0
    account: Account = field(default_factory=Account)
    best: float | None = None
    best_step: int = 0
    waited: int = 0


class Trainer:
    """Trains a student by a method, against an enrolled teacher where the method asks one.

    Args:
        config: of the run; its `output` receives config.json, metrics.jsonl, checkpoints/, student/, result.json.
        data: with the three splits.
        student: trained in place.
        method: its codec is trained by the same optimizer.
        teachers: enrolled; they step with the student, on the same schedule.
        progress: where to report; None reports to the standard output.
    """

    def __init__(
        self,
        config: RunConfig,
        data: TaskData,
        student: Student,
        method: Methods,
        teachers: Teachers | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.config, self.data = config, data
        self.teachers = Teachers() if teachers is None else teachers
        self.name = "+".join(config.method.names)
        self.progress = Progress(self.name) if progress is None else progress
        self.accelerator = build_accelerator(config.training, config.output)
        self.steps = Steps(config, data.train, student, method, self.teachers, self.accelerator)
        self.student, self.method = self.steps.student, self.steps.method
        self.stream, self.batches, self.optimizer = self.steps.stream, self.steps.batches, self.steps.optimizer
        self.total_steps = self.steps.total
        self.position = Position()
        self.interrupts = Interrupts()
        self.records = Records(Journal(config.output / "metrics.jsonl"), self.progress, self.accelerator)
        self._validation_view = student.view(data.validation.columns)
        self._saved_step = -1
        self._clock_start, self._account_start = 0.0, Account()

    @property
    def is_done(self) -> bool:
        """Whether all steps are done or the patience has run out."""
        patience = self.config.training.patience
        return self.position.step >= self.total_steps or (patience is not None and self.position.waited >= patience)

    def run(self, steps: int | None = None) -> Result | None:
        """Trains to the end, or for at most `steps` more steps, or until a signal; each leaves a checkpoint.

        Returns:
            the result, or None if the run is not at its end and can be resumed.

        Raises:
            NonFiniteError: a loss or gradient that is no number.
            TeachingError: the teacher cannot go on; the last checkpoint can be resumed.
        """
        stop = self.total_steps if steps is None else self.position.step + steps
        training = self.config.training
        with self.interrupts, compute_threads(training.threads), exact_algorithms(training.deterministic):
            try:
                self._open()
                while not (self.is_done or self.interrupts.signal or self.position.step >= stop):
                    self._step()
                    self._report()
                self.save()
                return self._finish() if self.is_done else None
            finally:
                self.batches.close()
                self.progress.close()
                self.accelerator.end_training()

    def save(self) -> None:
        """Writes a checkpoint of both sides, unless this step has one."""
        if self._saved_step == self.position.step:
            return
        self._look_at_clocks()
        checkpoint = Checkpoint(
            self.position.step,
            self.config.identity(),
            {"position": asdict(self.position), "place": asdict(self.batches.place), **self.optimizer.facts()},
            {
                "student": self.student.state_dict(),
                "method": self.method.state_dict(),
                "optimizer": self.optimizer.tensors(),
                "random": random_state(),
            },
            self.teachers.export_states(),
            self.config.output / "student" if self.position.best_step else None,
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
            self.optimizer.load(found.tensors["optimizer"], found.facts)
            position = dict(found.facts["position"])
            self.position = Position(**position | {"account": Account(**position["account"])})
            self.batches.go_to(Place(**found.facts["place"]))
            set_random_state(found.tensors["random"])
        except (RuntimeError, KeyError, TypeError, ValueError) as error:
            raise StateMismatch(f"the checkpoint of step {found.step} does not fit this run: {error}") from error
        self.teachers.import_states(found.sessions)
        if found.best is not None:
            shutil.copytree(found.best, self._draft())
            self._keep_best()
        self._saved_step = found.step

    def _open(self) -> None:
        output, training = self.config.output, self.config.training
        try:
            output.mkdir(parents=True, exist_ok=True)
            (output / "config.json").write_text(self.config.model_dump_json(indent=2) + "\n", encoding="utf-8")
            self.records.journal.rewind(self.position.step)
        except OSError as error:
            raise ConfigError(f"output: received {output}, expected a folder to write to ({error})") from error
        if training.tensorboard:
            self.accelerator.init_trackers("tensorboard")
        if self.position.step == 0:
            torch.manual_seed(training.seed)
        self.student.train()
        self.method.train()
        self._clock_start = time.monotonic() - self.position.seconds
        self._account_start = self.teachers.account - self.position.account
        self.progress.start(self.total_steps, self.position.step)

    def _step(self) -> None:
        self.records.watch(self.steps.take(self.position.step, self._watch))
        self.position.step += 1

    def _watch(self, outcome: Outcome) -> None:
        self.records.add(outcome.loss, outcome.parts, outcome.monitors)

    def _report(self) -> None:
        """What is due after a step: validation, a record, a checkpoint."""
        training, step = self.config.training, self.position.step
        self._look_at_clocks()
        self.progress.advance(step)
        ends = step >= self.total_steps
        scores = self._validate() if ends or step % training.evaluate_every == 0 else None
        if scores is not None or step % training.log_every == 0:
            facts = {
                "epoch": self.batches.place.epoch,
                "seconds": round(self.position.seconds, 3),
                "teacher_s": round(self.position.account.seconds, 3),
            }
            monitors = self.records.write(step, facts, None if scores is None else scores.as_dict())
            if step > training.warmup_steps:
                self.records.warn_of_collapse(monitors)
        if step % training.checkpoint_every == 0:
            self.save()

    def _validate(self) -> Scores:
        scores = evaluate(self.student, self._validation_view, self.data.validation)
        self.position.waited += 1
        if scores.better_than(self.position.best):
            self.position.best, self.position.best_step, self.position.waited = scores.value, self.position.step, 0
            self.student.save(self._draft())
            self._keep_best()
        return scores

    def _draft(self) -> Path:
        draft = self.config.output / ".student"
        shutil.rmtree(draft, ignore_errors=True)
        return draft

    def _keep_best(self) -> None:
        replace_folder(self.config.output / ".student", self.config.output / "student")

    def _finish(self) -> Result:
        """Scores the best student on the test split, this once, and writes result.json."""
        best = load_student(self.config.output / "student").to(self.accelerator.device)
        scores = evaluate(best, best.view(self.data.test.columns), self.data.test)
        self._look_at_clocks()
        account = self.position.account
        result = Result(
            method=self.name,
            metric=scores.metric,
            validation=float(self.position.best or 0.0),
            test=scores.value,
            test_loss=scores.loss,
            test_macro_f1=scores.macro_f1,
            best_step=self.position.best_step,
            parameters=_count(best),
            codec_parameters=_count(self.method),
            steps=self.position.step,
            epochs=self.batches.place.epoch + 1,
            wall_s=round(self.position.seconds, 3),
            teacher_s=round(account.seconds, 3),
            teacher_rows=account.rows,
            teacher_rows_saved=account.rows_saved,
            bytes_sent=account.bytes_sent,
            bytes_received=account.bytes_received,
            device=str(self.accelerator.device),
            seed=self.config.training.seed,
        )
        result.write(self.config.output)
        return result

    def _look_at_clocks(self) -> None:
        self.position.seconds = time.monotonic() - self._clock_start
        self.position.account = self.teachers.account - self._account_start


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
