"""The sessions of a run opened with its teachers, as its configuration says; knows no student and no loop."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from student_client.config import RunConfig, TeacherConfig
from student_client.connection.credentials import Credentials
from student_client.connection.route import Route
from student_client.methods import Method, named, session_options
from student_client.ranks import Ranks
from student_client.teachers.members import NOT_YET
from student_client.teachers.recovery import Patience
from student_client.teachers.remote import InProcessTeacher, RemoteTeacher, SessionOptions, Teacher
from student_client.teachers.teachers import Absence, Member, Teachers
from teaching_protocol.errors import ConfigError
from teaching_protocol.verbs import OptimizerSettings, TeacherVerbs

__all__ = ["connected"]

_PATIENCE_S, _SHORT_PATIENCE_S = 10.0, 1.0  # a rule for missing teachers has a patience of its own

Say = Callable[[str], None]


@contextmanager
def connected(
    config: RunConfig,
    task: str,
    served: Sequence[str],
    given: Sequence[TeacherVerbs],
    say: Say,
    resume: bool = False,
    ranks: Ranks | None = None,
) -> Iterator[Teachers]:
    """Gives the teachers that the run's methods ask, with open sessions; none where no method asks one.

    Args:
        config: of the run.
        task: name of what is learned.
        served: names of the teachers' input ports that the data can fill (`task_data.teacher_ports`).
        given: teachers in this process, as of `runs.train`.
        say: is told who is missing.
        resume: whether a run goes on, whose teachers are waited for.
        ranks: the processes that share its sessions; None is this one alone.

    Raises:
        ConfigError: a method needs a teacher, and the configuration names none.
        TeachingError: a teacher refuses or cannot be reached.
    """
    wanted = named(config.method).values()
    ranks = ranks or Ranks()
    asked = [] if not any(method.needs_teacher for method in wanted) else _teachers(config, task, given, ranks.count)
    if not any(method.asks_all for method in wanted):
        asked = asked[:1]
    names = ["foundation", *(f"complementary {place}" for place in range(1, len(asked)))]
    members = [Member(each, tuple(served), place, names[place]) for place, each in enumerate(asked)]
    converse = any(method.converses_under(config.method) for method in wanted)
    together = Teachers(members, converse, _absence(config, say), ranks)
    with ExitStack() as stack:
        stack.callback(together.leave)
        ranks.only_first(lambda: _enroll(together, resume), None)
        together.share()
        _check_everybody(together, wanted)
        yield together


def _absence(config: RunConfig, say: Say) -> Absence:
    """What is done when a teacher cannot be reached: the run waits for it, unless one of its methods has a rule for that."""
    patience_s = (config.teacher or TeacherConfig.model_validate({})).patience_s
    if not _bears_missing(config):
        return Absence(patience_s=patience_s, say=say)
    committee = config.method.committee
    rule, setting = committee.on_missing, "teacher.patience_s"
    if rule == "wait":
        patience_s, setting = committee.wait_s, "method.committee.wait_s"
    if rule == "fail":
        patience_s = 0.0
    return Absence(rule, committee.wait_s, committee.retry_s, say, patience_s, setting)


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


def _teachers(config: RunConfig, task: str, given: Sequence[TeacherVerbs], ranks: int) -> list[Teacher]:
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
        _session(config, task, each, place, given[place] if place < len(given) else None, ranks)
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
    config: RunConfig, task: str, wanted: TeacherConfig, place: int, teacher: TeacherVerbs | None, ranks: int
) -> Teacher:
    options = session_options(config.method, task, config.method.seed + place)
    options |= SessionOptions(
        optimizer=OptimizerSettings(name=wanted.optimizer, weight_decay=wanted.weight_decay),
        world_size=ranks,
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
