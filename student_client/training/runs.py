"""One run from its configuration: data, student, method, teachers and trainer put together; trains nothing itself."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from filelock import FileLock
from filelock import Timeout as FileLockTimeout

from student_client.config import RunConfig
from student_client.methods import Context, build_methods, check_suits, reads_student_tokens
from student_client.ranks import Ranks, joined
from student_client.reporting.footprint import TEACHER, Footprint
from student_client.reporting.metrics import Facts
from student_client.reporting.progress import Progress
from student_client.reporting.result import Result
from student_client.reporting.watching import watching
from student_client.reporting.weighing import weigh
from student_client.students import build_student
from student_client.teachers.members import STUDENT_TOKENS
from student_client.training.acceleration import compute_threads
from student_client.training.connecting import connected
from student_client.training.division import check_divisible
from student_client.training.stream import check_streamable
from student_client.training.trainer import Trainer
from student_models import load_student
from task_data import load_data, teacher_ports
from teaching_protocol.errors import ConfigError
from teaching_protocol.verbs import TeacherVerbs

__all__ = ["measured", "open_run", "train"]

_WRITTEN = ("config.json", "metrics.jsonl", "result.json", "checkpoints", "student", "tensorboard")


def train(
    config: RunConfig,
    *,
    resume: bool = False,
    overwrite: bool = False,
    teachers: Sequence[TeacherVerbs] = (),
    progress: Progress | None = None,
) -> Result | None:
    """Trains one student to its end; None if a signal ended it before, with a checkpoint to resume from.

    Args:
        config: of the run.
        resume: go on from the newest checkpoint of the output folder.
        overwrite: remove what an earlier run left in the output folder.
        teachers: teachers in this process (`teacher_server.local.local_teacher`) in place of those at the addresses, the
            foundation first.
        progress: where to report; None reports to the standard output.

    Raises:
        ConfigError: a configuration that cannot be used, or an output folder that holds another run.
        DataError: data that cannot be had.
        TeachingError: the teacher refuses or cannot go on.
    """
    with open_run(config, resume=resume, overwrite=overwrite, teachers=teachers, progress=progress) as trainer:
        return trainer.run()


@contextmanager
def open_run(
    config: RunConfig,
    *,
    resume: bool = False,
    overwrite: bool = False,
    teachers: Sequence[TeacherVerbs] = (),
    progress: Progress | None = None,
) -> Iterator[Trainer]:
    """Gives the trainer of a run, ready to `run`, with its session open; arguments and errors as of `train`."""
    progress = progress or Progress("+".join(config.method.names))
    check_streamable(config)
    with ExitStack() as stack:
        stack.enter_context(compute_threads(config.training.threads))
        ranks = stack.enter_context(_ranks(config))
        if ranks.count > 1 and teachers:
            raise ConfigError(
                f"received a teacher in this process and {ranks.count} ranks, which must share one; start teacher-server"
            )
        if not ranks.is_first:
            config, progress = _unseen(config), Progress(progress.label, quiet=True)
        with ranks.together():
            if ranks.is_first:
                stack.enter_context(_owned(config.output))
                _claim(config.output, resume, overwrite)
            data = load_data(config.data)
        check_suits(config.method, data.task)
        student = build_student(config.student, data)
        served = STUDENT_TOKENS if reads_student_tokens(config.method, data.task) else teacher_ports(data.train)
        together = stack.enter_context(connected(config, data.task.name, served, teachers, progress.say, resume, ranks))
        method = build_methods(Context(config.method, student, together.cards, config.method.seed))
        trainer = Trainer(config, data, student, method, together, progress)
        trainer.watch = stack.enter_context(
            watching(config.training, config.output.name, trainer.name, lambda: _facts(trainer), progress.say)
        )
        trainer.records.listener = trainer.watch.record
        together.trace(trainer.watch.tracing)
        if resume:
            trainer.resume()
        yield trainer


@contextmanager
def _ranks(config: RunConfig) -> Iterator[Ranks]:
    """The processes that train this student: those a launcher has started, or this one alone."""
    patience_s = 0.0 if config.teacher is None else config.teacher.patience_s
    with joined(config.training.rank_timeout_s, patience_s) as ranks:
        check_divisible(config, ranks.count, config.data.level)
        yield ranks


def _unseen(config: RunConfig) -> RunConfig:
    """A configuration that shows nothing of the run: rank 0 does."""
    training = config.training.model_copy(update={"metrics_port": -1, "metrics_push": None})
    return config.model_copy(update={"training": training})


def _facts(trainer: Trainer) -> Facts:
    """How a run stands, for its metrics."""
    teachers, lost = trainer.teachers, trainer.position.losses
    spent = teachers.account
    return Facts(
        step=trainer.position.step,
        planned_steps=trainer.total_steps,
        teacher_wait_s=teachers.wait_s,
        teacher_compute_s=spent.seconds,
        teacher_rows=spent.rows,
        bytes_sent=spent.bytes_sent,
        bytes_received=spent.bytes_received,
        recoveries=lost.recoveries,
        replayed_steps=lost.replayed_steps,
        paused_s=lost.paused_s,
        moves=lost.moves,
    )


def measured(trainer: Trainer, result: Result) -> Result:
    """A run's result with the sizes and times of its best student and its foundation teacher, written again.

    The teacher is asked about a few more batches, which are counted nowhere.
    """
    best = load_student(trainer.config.output / "student").to(trainer.accelerator.device)
    teachers = {TEACHER: trainer.teachers.first} if trainer.teachers else {}
    sizes = weigh({"student": best}, teachers, trainer.data.validation)
    found = replace(result, student_size=sizes["student"], teacher_size=sizes.get(TEACHER, Footprint()))
    found.write(trainer.config.output)
    return found


@contextmanager
def _owned(output: Path) -> Iterator[None]:
    """The run's folder for this process alone; the system lets go of it when the process ends, however it ends.

    Raises:
        ConfigError: another process has it, or it cannot be written to.
    """
    lock = FileLock(output / ".lock", timeout=0)
    try:
        output.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except FileLockTimeout as error:
        raise ConfigError(
            f"output: received {output}, where another process trains; wait for its end, or give another output"
        ) from error
    except OSError as error:
        raise ConfigError(f"output: received {output}, expected a folder to write to ({error})") from error
    try:
        yield
    finally:
        lock.release()


def _claim(output: Path, resume: bool, overwrite: bool) -> None:
    """Refuses a folder that holds a run, unless it is resumed or given up."""
    found = [name for name in _WRITTEN if (output / name).exists()]
    if resume or not found:
        return
    if not overwrite:
        raise ConfigError(
            f"output: received {output}, which holds a run already ({', '.join(found)}); "
            "go on with it by --resume, replace it by --overwrite, or give another output"
        )
    for name in found:
        path = output / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
