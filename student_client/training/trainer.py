"""The training loop: steps, validation, the best student, checkpoints, lost teachers; knows no method's mathematics."""

from __future__ import annotations

import shutil
import time
from contextlib import suppress
from dataclasses import asdict, replace

import torch

from student_client.config import RunConfig
from student_client.files import replace_file
from student_client.methods import Methods, Outcome
from student_client.reporting.progress import Journal, Progress, Records
from student_client.reporting.result import Result
from student_client.reporting.watching import Watch
from student_client.reporting.weighing import count_parameters
from student_client.teachers.recovery import LOST, Losses, Recovery
from student_client.teachers.teachers import Account, Teachers
from student_client.training.acceleration import build_accelerator, compute_threads, exact_algorithms
from student_client.training.checkpoints import Checkpoint
from student_client.training.cuts import Cuts, Mark
from student_client.training.evaluate import Scores, evaluate
from student_client.training.interrupts import Interrupts
from student_client.training.keeping import Held, Keeping
from student_client.training.position import Position, place_best
from student_client.training.steps import Steps
from student_models import Student, load_student
from student_models.token_labels import labelled_view
from task_data import TaskData
from teaching_protocol.errors import ConfigError, Draining, StateMismatch, TeachingError

__all__ = ["Position", "Trainer"]


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
        self.ranks = self.teachers.ranks
        self.accelerator = build_accelerator(config.training, config.output, self.ranks.count)
        self.ranks.align([student, method])
        rows = data.train if data.stream is None else data.stream
        self.steps = Steps(config, rows, student, method, self.teachers, self.accelerator)
        self.student, self.method = self.steps.student, self.steps.method
        self.stream, self.batches, self.optimizer = self.steps.stream, self.steps.batches, self.steps.optimizer
        self.total_steps = self.steps.total
        self.position = Position()
        self.interrupts, self.watch = Interrupts(), Watch()
        journal = Journal(config.output / "metrics.jsonl")
        self.records = Records(journal, self.progress, self.accelerator, self.ranks)
        identity = config.identity() | ({"ranks": self.ranks.count} if self.ranks.count > 1 else {})
        self.cuts = Cuts(self.steps, self.records.means, identity)
        held = Held(config.training.rewind_bytes, self.accelerator.device.type == "cuda")
        self.keeping = Keeping(config.output / "checkpoints", identity, held, self.ranks)
        self.recovery = Recovery(self.teachers, self.position.losses, lambda: bool(self.interrupts.signal))
        self.teachers.winds_back = True
        self._validation_view = labelled_view(student, data.validation)
        self._sessions: tuple[int, tuple[bytes, ...]] = (-1, ())
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
            TeachingError: the teacher cannot go on, or did not come back in time; the last checkpoint can be resumed.
        """
        stop = self.total_steps if steps is None else self.position.step + steps
        training = self.config.training
        with self.interrupts, compute_threads(training.threads), exact_algorithms(training.deterministic):
            try:
                self._open()
                while self._goes_on(stop) or self.keeping.saved_step != self.position.step:
                    self._advance(stop)
                return self._finish() if self.is_done else None
            finally:
                self.batches.close()
                self.progress.close()
                self.accelerator.end_training()

    def save(self) -> None:
        """Writes a checkpoint of both sides, unless this step has one."""
        if self.keeping.saved_step != self.position.step:
            self.keeping.write(self._cut())

    def resume(self) -> None:
        """Puts both sides where the newest whole checkpoint of the output folder has them.

        Raises:
            ConfigError: there is none, or it is of another configuration.
            StateMismatch: it does not fit this student, method or teacher.
        """
        found = self.keeping.load()
        self.teachers.check_weights(found.facts.get("teachers", []))
        self._put_back(found)
        try:
            self.ranks.only_first(lambda: self.teachers.import_states(found.sessions), None)
            self.teachers.share()
        except LOST as error:
            self.recovery.come_back(error, found.step, found.step, found.sessions)
        self._sessions = (found.step, found.sessions)
        if found.best is not None:
            best = found.best
            self.ranks.only_first(
                lambda: place_best(self.config.output, lambda draft: shutil.copytree(best, draft)), None
            )
        self.progress.say(f"goes on after step {found.step} of {self.total_steps}")

    def _goes_on(self, stop: int) -> bool:
        if self.is_done or self.position.step >= stop:
            return False
        told = max(self.ranks.gather(self.interrupts.signal))  # one rank's is all ranks'
        if told:  # and one that has come meanwhile is told next time
            self.interrupts.signal = told
        return not told

    def _advance(self, stop: int) -> None:
        """One step and its report, or the checkpoint at the end; if a teacher is lost in it, back to where both sides agree."""
        mark = self.cuts.mark(self.position.step)
        try:
            with self.ranks.together():
                if self.teachers and self.keeping.step < 0:
                    self.keeping.keep(self._cut())
                if self._goes_on(stop):
                    self._step()
                    self._report()
                else:
                    self.save()
        except LOST as error:
            self._recover(error, mark)

    def _open(self) -> None:
        training = self.config.training
        self.ranks.only_first(self._open_files, None)
        if training.tensorboard:
            # lets go of what a process before this one wrote behind its last checkpoint
            fresh = {"purge_step": self.position.step + 1}
            self.accelerator.init_trackers("tensorboard", init_kwargs={"tensorboard": fresh})
        if self.position.step == 0:
            torch.manual_seed(training.seed + self.ranks.rank)
        self.student.train()
        self.method.train()
        self._clock_start = time.monotonic() - self.position.seconds
        self._account_start = self.teachers.account - self.position.account
        self.progress.start(self.total_steps, self.position.step)

    def _open_files(self) -> None:
        output = self.config.output
        try:
            output.mkdir(parents=True, exist_ok=True)
            replace_file(output / "config.json", self.config.model_dump_json(indent=2) + "\n")
            self.records.journal.rewind(self.position.step)
        except OSError as error:
            raise ConfigError(f"output: received {output}, expected a folder to write to ({error})") from error

    def _step(self) -> None:
        with self.watch.step(self.position.step + 1):
            self.records.watch(self.steps.take(self.position.step, self._watch))
            self.ranks.hear()  # that every rank has stepped
        self.position.step += 1

    def _watch(self, outcome: Outcome) -> None:
        self.records.add(outcome.loss, outcome.parts, outcome.monitors)

    def _report(self) -> None:
        """What is due after a step: validation, a record, a cut in memory, a checkpoint.

        What needs the teachers comes first: if one is lost, nothing of the report was done. A new best student is never
        rewound past, since every validation ends with a cut.
        """
        training, step = self.config.training, self.position.step
        self._look_at_clocks()
        self.progress.advance(step)
        ends = step >= self.total_steps
        validates, saves = ends or step % training.evaluate_every == 0, step % training.checkpoint_every == 0
        cuts = validates or saves or step % training.rewind_steps == 0
        if cuts:
            self._states()
        scores = self._validate() if validates else None
        if scores is not None or step % training.log_every == 0:
            facts = {
                "epoch": self.batches.place.epoch,
                "seconds": round(self.position.seconds, 3),
                "teacher_s": round(self.position.account.seconds, 3),
                "recoveries": self.position.losses.recoveries,
                "replayed_steps": self.position.losses.replayed_steps,
                "moves": self.position.losses.moves,
            }
            monitors = self.records.write(step, facts, None if scores is None else scores.as_dict())
            if step > training.warmup_steps:
                self.records.warn_of_collapse(monitors)
        if cuts and self.teachers:
            self.keeping.keep(self._cut())
        if saves:
            self.save()
        if cuts and not ends:
            self.teachers.look_for_places()

    def _states(self) -> tuple[bytes, ...]:
        """The state of every session after this step, asked for once."""
        if self._sessions[0] != self.position.step:
            self._sessions = (self.position.step, self.ranks.only_first(self.teachers.export_states, ()))
        return self._sessions[1]

    def _cut(self, mark: Mark | None = None, sessions: tuple[bytes, ...] | None = None) -> Checkpoint:
        """Both sides after this step, or at a mark before one that failed."""
        sessions = self._states() if sessions is None else sessions
        self._look_at_clocks()
        facts = {"position": asdict(self.position), "teachers": self.teachers.hashes}
        cut = self.cuts.take(mark or self.cuts.mark(self.position.step), facts, sessions)
        return replace(cut, best=self.config.output / "student" if self.position.best_step else None)

    def _recover(self, error: TeachingError, mark: Mark) -> None:
        """Waits for the lost teacher and winds both sides back; if it stays away, the newest cut becomes a checkpoint."""
        step = self.position.step
        if self.keeping.step < 0:  # nothing was done yet
            self.recovery.come_back(error, step, step, self._sessions[1])
            return
        cut = self._handed_over(error, mark) or self.keeping.newest()
        try:
            came = self.recovery.come_back(error, step, cut.step, cut.sessions)
        except TeachingError as lost:
            try:
                self.keeping.write(cut)
            except ConfigError as unwritten:
                lost.add_note(str(unwritten))
            raise
        self._put_back(cut)
        self.records.rewind(cut.step)
        self.progress.advance(cut.step)
        if not came:
            self.keeping.write(cut)

    def _handed_over(self, error: TeachingError, mark: Mark) -> Checkpoint | None:
        """The cut before the step that failed, where teachers have no state, or drain and tell it; else None."""
        if self.ranks.count > 1:
            return None  # one rank may have gathered what another has not
        if mark.step != self.position.step or not (isinstance(error, Draining) or not self.teachers.converse):
            return None
        with suppress(TeachingError):
            sessions = self.teachers.hand_off(mark.step) if self.teachers.converse else ()
            if sessions is not None:
                return self.keeping.keep(self._cut(mark, sessions))
        return None

    def _put_back(self, cut: Checkpoint) -> None:
        """The student's side as a cut has it. What was spent is spent: clocks and losses stay, but in a new process."""
        is_new = self.position.step == 0 and self.keeping.step < 0
        self.cuts.put_back(cut)
        try:
            facts = dict(cut.facts["position"])
            found = {"account": Account(**facts["account"]), "losses": Losses(**facts.get("losses", {}))}
            position = Position(**facts | found)
        except (KeyError, TypeError) as error:
            raise StateMismatch(f"the checkpoint of step {cut.step} does not fit this run: {error}") from error
        if not is_new:
            position = replace(position, seconds=self.position.seconds, account=self.position.account)
            position.losses = self.position.losses
        self.position, self.recovery.losses = position, position.losses
        self._sessions = (cut.step, cut.sessions)

    def _validate(self) -> Scores:
        found = self.ranks.first(lambda: asdict(evaluate(self.student, self._validation_view, self.data.validation)))
        scores = Scores(**found)
        self.position.waited += 1
        if scores.better_than(self.position.best):
            self.position.best, self.position.best_step, self.position.waited = scores.value, self.position.step, 0
            self.ranks.only_first(lambda: place_best(self.config.output, self.student.save), None)
        return scores

    def _finish(self) -> Result:
        """Scores the best student on the test split, this once, and writes result.json."""
        spent = self.ranks.gather(asdict(self.position.account))
        account = sum((Account(**each) for each in spent), Account())
        return Result.of(self.ranks.first(lambda: asdict(self._result(account))))

    def _result(self, account: Account) -> Result:
        best = load_student(self.config.output / "student").to(self.accelerator.device)
        scores = evaluate(best, best.view(self.data.test.columns), self.data.test)
        self._look_at_clocks()
        result = Result(
            method=self.name,
            metric=scores.metric,
            validation=float(self.position.best or 0.0),
            test=scores.value,
            test_loss=scores.loss,
            test_macro_f1=scores.macro_f1,
            test_subset_accuracy=scores.subset_accuracy,
            best_step=self.position.best_step,
            parameters=count_parameters(best),
            codec_parameters=count_parameters(self.method),
            steps=self.position.step,
            epochs=self.batches.place.epoch + 1,
            wall_s=round(self.position.seconds, 3),
            teacher_s=round(account.seconds, 3),
            teacher_rows=account.rows,
            teacher_rows_saved=account.rows_saved,
            bytes_sent=account.bytes_sent,
            bytes_received=account.bytes_received,
            device=str(self.accelerator.device),
            recoveries=self.position.losses.recoveries,
            replayed_steps=self.position.losses.replayed_steps,
            paused_s=round(self.position.losses.paused_s, 3),
            moves=self.position.losses.moves,
            seed=self.config.training.seed,
        )
        result.write(self.config.output)
        return result

    def _look_at_clocks(self) -> None:
        self.position.seconds = time.monotonic() - self._clock_start
        self.position.account = self.teachers.account - self._account_start
