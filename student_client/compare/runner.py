"""Does the runs of a comparison side by side, task by task, against servers they share; judges no result."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from student_client.compare.plan import TaskRuns, run_config, settings_of
from student_client.compare.records import SELECTED, Planned, Record, read_record, record_of, write_plan
from student_client.compare.sizes import sizes_of, student_configs
from student_client.compare.suites import Suite
from student_client.compare.teachers import Recipe, Servers, TeacherName, recipes, teacher_facts
from student_client.compare.view import Running, View, time_left_s
from student_client.compare.workers import Outcome, Workers
from student_client.methods import named
from student_client.reporting.standing import read_standing
from teaching_protocol.errors import ConfigError, TeacherUnavailable, TeachingError

__all__ = ["Runner", "known_runs", "plan_of"]

_NOBODY = "127.0.0.1:1"
_ATTEMPTS = 2
_MOMENT_S = 0.5


def known_runs(suite: Suite, only: Sequence[str], seeds: int, tuned: bool, root: Path) -> list[TaskRuns]:
    """The runs of every task, with what came of those that ended earlier under `root`.

    Raises:
        ConfigError: an unknown variant or method, or settings that no run can have.
    """
    unknown = [name for name in only if name not in suite.variants]
    if unknown:
        raise ConfigError(f"--only: received {', '.join(unknown)}, expected some of {', '.join(suite.variants)}")
    boards = []
    for task in suite.tasks:
        shown = [name for name in suite.variants_of(task) if not only or name in only]
        board = TaskRuns(suite, task, shown, seeds, tuned)
        _check(board)
        for _ in ("trials", "and the final runs, which they decide on"):
            for run in board.missing:
                _recall(board, run, root)
        boards.append(board)
    return boards


@dataclass
class Runner:
    """Brings the runs of all tasks to their end.

    Args:
        boards: the runs of every task.
        root: folder of the comparison.
        workers: the processes that do the work.
        view: where progress is shown.
        changed: called whenever a run has ended.
        keep_students: whether the trained students stay on the disk.
    """

    boards: Sequence[TaskRuns]
    root: Path
    workers: Workers
    view: View
    changed: Callable[[], None] = lambda: None
    keep_students: bool = False
    _attempts: Counter[Planned] = field(default_factory=Counter)
    _began: dict[Any, float] = field(default_factory=dict)
    _seconds: dict[Planned, float] = field(default_factory=dict)

    def run(self) -> None:
        """Does all that is missing, task by task; a run that fails is recorded, and the others go on."""
        for board in self.boards:
            self._seconds |= {run: record.wall_s for run, record in board.ended()}
        for board in self.boards:
            if board.missing:
                self._run_task(board)

    def _run_task(self, board: TaskRuns) -> None:
        folder = self.root / "teachers" / board.task
        folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            servers = Servers(board.suite.tasks[board.task], folder, stack)
            names = [name for name in _teachers(board) if name[1] == "trained"]
            try:
                lost = self._make(board, folder)
                self._train(board, servers, lost)
                self._weigh(board, servers, [name for name in names if name not in lost])
            except BaseException:
                self.workers.close()  # before the servers that their runs talk to
                raise

    def _make(self, board: TaskRuns, folder: Path) -> dict[TeacherName, str]:
        """Makes the teachers that are missing; gives those that could not be made, and why."""
        task = board.suite.tasks[board.task]
        needed = {name: list(recipes(task, name, folder)) for name in _teachers(board)}
        todo = {each.folder: each for made in needed.values() for each in made if not each.is_made}
        failed: dict[Path, str] = {}
        while todo or self.workers.running:
            for recipe in [each for each in todo.values() if not _waits(each, todo, self.workers.running)]:
                if len(self.workers.running) == self.workers.count:
                    break
                todo.pop(recipe.folder)
                broken = [failed[need] for need in recipe.needs if need in failed]
                if broken:
                    failed[recipe.folder] = broken[0]
                else:
                    self._give(recipe, recipe.job, folder / f"{recipe.folder.name}.job.log")
            for made, outcome in self._wait(board):
                if outcome.error is None:
                    made.note()
                else:
                    failed[made.folder] = outcome.error
                    self.view.say(f"{board.task}: {made.folder.name} was not made: {outcome.error}")
        return {name: failed[each.folder] for name, made in needed.items() for each in made if each.folder in failed}

    def _train(self, board: TaskRuns, servers: Servers, lost: dict[TeacherName, str]) -> None:
        """Trains until nothing of the task is left."""
        unscored = [name for name in _teachers(board) if name not in lost and not servers.is_scored(name)]
        while True:
            while len(self.workers.running) < self.workers.count and unscored:
                self._score(board, servers, unscored.pop(0), lost)
            while len(self.workers.running) < self.workers.count and (run := board.next()) is not None:
                self._begin(board, run, servers, lost)
            if not self.workers.running:
                return
            for job, outcome in self._wait(board):
                if isinstance(job, Planned):
                    self._end(board, job, outcome)
                elif outcome.error is not None:
                    self.view.say(f"{board.task}: {' '.join(job)} teacher is without a score: {outcome.error}")

    def _weigh(self, board: TaskRuns, servers: Servers, names: Sequence[TeacherName]) -> None:
        """How large and fast the task's models are, while nothing else runs; without it the report has no such table."""
        try:
            addresses = {name[0]: servers.address(name) for name in names}
        except TeachingError as error:
            self.view.say(f"{board.task}: its models are not weighed: {error}")
            return
        data = board.suite.tasks[board.task].data.model_dump(mode="json")
        job = {"kind": "weigh", "students": student_configs(board), "addresses": addresses, "data": data}
        self._give("weighing", job | {"output": str(sizes_of(self.root, board.task))}, servers.root / "sizes.log")
        while self.workers.running:
            for _, outcome in self._wait(board):
                if outcome.error is not None:
                    self.view.say(f"{board.task}: its models are not weighed: {outcome.error}")

    def _score(self, board: TaskRuns, servers: Servers, name: TeacherName, lost: dict[TeacherName, str]) -> None:
        try:
            job = servers.scoring(name)
        except TeachingError as error:
            lost[name] = str(error)
            return
        self._give(name, job, servers.root / f"{'-'.join(name)}.scores.log")

    def _begin(self, board: TaskRuns, run: Planned, servers: Servers, lost: Mapping[TeacherName, str]) -> None:
        suite, output = board.suite, self.root / run.folder
        variant = suite.variants[run.variant]
        names: list[TeacherName] = [(role, variant.weights) for role in variant.teachers]
        try:
            gone = [lost[name] for name in names if name in lost]
            if gone:
                raise TeacherUnavailable(gone[0])
            config = run_config(suite, run, [servers.address(name) for name in names], self.root)
        except TeachingError as error:
            self._end(board, run, Outcome(str(error)))
            return
        write_plan(output, plan_of(board, run, self.root))
        job: dict[str, Any] = {"kind": "train", "keep_student": self.keep_students}
        if run.stage == "select":
            (output / SELECTED).unlink(missing_ok=True)
            job = {"kind": "select", "episodes": suite.episodes(run.variant)}
        job["config"] = config.model_dump(mode="json")
        self._attempts[run] += 1
        self._give(run, job, output / "run.log")

    def _end(self, board: TaskRuns, run: Planned, outcome: Outcome) -> None:
        """Takes down what came of a run; one that may go well another time gets one more."""
        if outcome.error is not None and outcome.again and self._attempts[run] < _ATTEMPTS:
            self.view.say(f"{_called(run)} is tried again: {outcome.error}")
            board.again(run)
            return
        settings = settings_of(board.suite, run)
        if outcome.error is None:
            self._seconds[run] = time.monotonic() - self._began[run]
            board.add(run, record_of(self.root / run.folder, run, settings))
        else:
            self.view.say(f"{_called(run)} failed: {outcome.error}")
            board.add(run, Record.failed(run, settings, outcome.error))
        self.changed()

    def _give(self, job: Hashable, values: Mapping[str, Any], log: Path) -> None:
        self._began[job] = time.monotonic()
        self.workers.give(job, {**values, "log": str(log)})

    def _wait(self, board: TaskRuns) -> list[tuple[Any, Outcome]]:
        """The jobs that have ended in the last moment; the view is brought up to date."""
        found = self.workers.wait(_MOMENT_S)
        now, missing = time.monotonic(), [run for each in self.boards for run in each.missing]
        running = [job for job in self.workers.running if isinstance(job, Planned)]
        left = time_left_s(missing, self._seconds, sum(now - self._began[run] for run in running), self.workers.count)
        failed = sum(record.error is not None for each in self.boards for _, record in each.ended())
        self.view.show(failed, len(missing), [self._running(board, job) for job in self.workers.running], left)
        return found

    def _running(self, board: TaskRuns, job: Any) -> Running:
        if isinstance(job, Recipe):
            return Running(f"{board.task}: makes {job.folder.name}")
        if isinstance(job, Planned):
            steps = board.suite.tasks[board.task].settings.get("training.max_steps", 0)
            steps = 0 if job.stage == "select" else steps
            return Running(_called(job), read_standing(self.root / job.folder).step, steps)
        return Running(f"{board.task}: {job if isinstance(job, str) else 'scores ' + ' '.join(job)}")


def _teachers(board: TaskRuns) -> list[TeacherName]:
    """The teachers that missing runs ask."""
    variants = [board.suite.variants[run.variant] for run in board.missing]
    return list(dict.fromkeys((role, variant.weights) for variant in variants for role in variant.teachers))


def _waits(recipe: Recipe, todo: Mapping[Path, Recipe], running: Sequence[Any]) -> bool:
    pending = {*todo, *(each.folder for each in running)}
    return any(need in pending for need in recipe.needs)


def plan_of(board: TaskRuns, run: Planned, root: Path) -> dict[str, Any]:
    """What a run is to do: its configuration without addresses, and what its teachers are made of."""
    suite, folder = board.suite, root / "teachers" / board.task
    variant = suite.variants[run.variant]
    config = run_config(suite, run, [_NOBODY] * len(variant.teachers), Path())
    names: list[TeacherName] = [(role, variant.weights) for role in variant.teachers]
    made = {"-".join(name): teacher_facts(suite.tasks[board.task], name, folder) for name in names}
    plan = {"config": config.identity(), "teachers": made, "episodes": suite.episodes(suite.source(run.variant))}
    if plan["episodes"]:
        plan["learning"] = config.method.selection.learning.model_dump(mode="json")
    return plan


def _recall(board: TaskRuns, run: Planned, root: Path) -> None:
    """Takes what came of a run in an earlier session, if it did what is planned now."""
    if run.trial is None or run.key in board.records or not (root / run.folder).exists():
        return
    found = read_record(root / run.folder, run, settings_of(board.suite, run), plan_of(board, run, root))
    if found is not None:
        board.add(run, found)


def _check(board: TaskRuns) -> None:
    """Refuses settings that no run can have, before any has begun."""
    for run in board.runs():
        variant = board.suite.variants[run.variant]
        trials = range(len(board.suite.grid)) if run.trial is None else [run.trial]
        for trial in trials if run.number == 0 or run.stage == "tune" else ():
            config = run_config(board.suite, replace(run, trial=trial), [_NOBODY] * 2, Path())
            asks = [name for name, method in named(config.method).items() if method.needs_teacher]
            if asks and not variant.teachers:
                raise ConfigError(f"variant {run.variant}: teachers is empty, expected one for {', '.join(asks)}")


def _called(run: Planned) -> str:
    return f"{run.task}/{run.variant} {run.stage} {run.number}"
