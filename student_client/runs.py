"""One run from its configuration: data, student, method, teacher and trainer put together; trains nothing itself."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock
from filelock import Timeout as FileLockTimeout

from student_client.acceleration import compute_threads
from student_client.config import RunConfig, TeacherConfig
from student_client.credentials import Credentials
from student_client.members import NOT_YET
from student_client.methods import Context, Method, build_methods, named, session_options
from student_client.metrics import Facts
from student_client.progress import Progress
from student_client.recovery import Patience
from student_client.remote import InProcessTeacher, RemoteTeacher, SessionOptions, Teacher
from student_client.result import Result
from student_client.route import Route
from student_client.students import build_student
from student_client.teachers import Absence, Member, Teachers
from student_client.trainer import Trainer
from student_client.watching import watching
from task_data import TaskData, load_data, teacher_ports
from teaching_protocol.errors import ConfigError
from teaching_protocol.verbs import OptimizerSettings, TeacherVerbs

__all__ = ["connected", "open_run", "train"]

_PATIENCE_S, _SHORT_PATIENCE_S = 10.0, 1.0  # a rule for missing teachers has a patience of its own
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
    with ExitStack() as stack:
        stack.enter_context(compute_threads(config.training.threads))
        stack.enter_context(_owned(config.output))
        _claim(config.output, resume, overwrite)
        data = load_data(config.data)
        student = build_student(config.student, data)
        together = stack.enter_context(connected(config, data, teachers, progress, resume))
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
def connected(
    config: RunConfig, data: TaskData, given: Sequence[TeacherVerbs], progress: Progress, resume: bool = False
) -> Iterator[Teachers]:
    """Gives the teachers that the run's methods ask, with open sessions; none where no method asks one.

    Args:
        config: of the run.
        data: what is asked about.
        given: teachers in this process, as of `train`.
        progress: is told who is missing.
        resume: whether a run goes on, whose teachers are waited for.

    Raises:
        ConfigError: a method needs a teacher, and the configuration names none.
        TeachingError: a teacher refuses or cannot be reached.
    """
    wanted = named(config.method).values()
    asked = [] if not any(method.needs_teacher for method in wanted) else _teachers(config, data, given)
    if not any(method.asks_all for method in wanted):
        asked = asked[:1]
    served = teacher_ports(data.train)
    names = ["foundation", *(f"complementary {place}" for place in range(1, len(asked)))]
    members = [Member(each, served, place, names[place]) for place, each in enumerate(asked)]
    converse = any(method.converses_under(config.method) for method in wanted)
    together = Teachers(members, converse, _absence(config, progress))
    with ExitStack() as stack:
        stack.callback(together.leave)
        _enroll(together, resume)
        _check_everybody(together, wanted)
        yield together


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
    )


def _absence(config: RunConfig, progress: Progress) -> Absence:
    """What is done when a teacher cannot be reached: the run waits for it, unless one of its methods has a rule for that."""
    patience_s = (config.teacher or TeacherConfig.model_validate({})).patience_s
    if not _bears_missing(config):
        return Absence(patience_s=patience_s, say=progress.say)
    committee = config.method.committee
    rule, setting = committee.on_missing, "teacher.patience_s"
    if rule == "wait":
        patience_s, setting = committee.wait_s, "method.committee.wait_s"
    if rule == "fail":
        patience_s = 0.0
    return Absence(rule, committee.wait_s, committee.retry_s, progress.say, patience_s, setting)


def _bears_missing(config: RunConfig) -> bool:
    return any(method.bears_missing for method in named(config.method).values())


def _enroll(teachers: Teachers, resume: bool) -> None:
    """Opens every session. A run that goes on waits for its teachers, and for the lease of the session it had before."""
    try:
        teachers.enroll()
    except NOT_YET as error:
        if not resume:
            raise
        patience = Patience(teachers.absence)
        patience.begin()
        patience.persist(teachers.enroll, error)


def _check_everybody(teachers: Teachers, methods: Iterable[type[Method]]) -> None:
    """Raises why a teacher is missing at the start, unless every method can be built without its card."""
    lost = [member.lost for member in teachers.members if member.lost is not None]
    if lost and not all(method.bears_missing for method in methods):
        raise lost[0]


def _hurries(config: RunConfig, wanted: TeacherConfig) -> bool:
    """Whether a call that finds nobody gives up soon: there is another address, or a rule for who is missing."""
    return bool(wanted.addresses) or (_bears_missing(config) and config.method.committee.on_missing != "fail")


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
            "go on with it by --resume, give it up by --overwrite, or give another output"
        )
    for name in found:
        path = output / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _teachers(config: RunConfig, data: TaskData, given: Sequence[TeacherVerbs]) -> list[Teacher]:
    """A session with each teacher of the run, the foundation first; none is enrolled yet."""
    if config.teacher is None and not given:
        raise ConfigError(
            f"teacher: received none, expected one for the method {', '.join(config.method.names)}; "
            "start `teacher-server serve` and give its address by --teacher HOST:PORT"
        )
    first = config.teacher or TeacherConfig.model_validate({})
    wanted = [first, *config.complementary]
    wanted += [first] * (len(given) - len(wanted))
    return [
        _session(config, data, each, place, given[place] if place < len(given) else None)
        for place, each in enumerate(wanted)
    ]


def _credentials(wanted: TeacherConfig) -> Credentials:
    return Credentials(
        ca=wanted.ca,
        cert=wanted.cert,
        key=wanted.key,
        token_file=wanted.token_file,
        tls=wanted.tls,
        server_name=wanted.server_name,
        insecure=wanted.insecure,
    )


def _session(
    config: RunConfig, data: TaskData, wanted: TeacherConfig, place: int, teacher: TeacherVerbs | None
) -> Teacher:
    options = session_options(config.method, data.task.name, config.method.seed + place)
    options |= SessionOptions(
        optimizer=OptimizerSettings(name=wanted.optimizer, weight_decay=wanted.weight_decay),
    )
    if wanted.entry is not None:
        options["entry"] = wanted.entry
    if wanted.exit is not None:
        options["exit"] = wanted.exit
    name = wanted.student or f"{config.output.name}-{uuid.uuid4().hex[:8]}"
    if teacher is not None:
        return InProcessTeacher(teacher, student=name, deadline_s=wanted.deadline_s, **options)
    credentials = _credentials(wanted)
    route = Route((wanted.address, *wanted.addresses), name, credentials, wanted.spread, wanted.settle_s)
    return RemoteTeacher(
        route,
        student=name,
        compression=wanted.compression,
        shared_memory=wanted.shared_memory,
        int8_error=wanted.int8_error,
        credentials=credentials,
        deadline_s=wanted.deadline_s,
        patience_s=_SHORT_PATIENCE_S if _hurries(config, wanted) else _PATIENCE_S,
        **options,
    )
