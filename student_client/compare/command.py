"""The command `student-client compare`: flags to a comparison, one comparison a folder; judges nothing."""

from __future__ import annotations

import importlib.util
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
from filelock import FileLock, Timeout
from rich.console import Console

from command_config.completion import complete_listed, complete_names
from command_config.line import Json
from student_client.compare.catalogue import SUITES, TASKS, find_suite
from student_client.compare.plan import TUNING_SEED, TaskRuns
from student_client.compare.suites import Suite, dump_suite
from student_client.compare.variants import VARIANTS
from student_client.processes import cores
from teaching_protocol.errors import ConfigError

__all__ = ["compare"]

_MARK = ".compare"


def compare(
    suite: Annotated[
        str,
        typer.Option(
            help=f"One of {', '.join(SUITES)}, or a YAML file of yours.", autocompletion=complete_names(tuple(SUITES))
        ),
    ],
    seeds: Annotated[int, typer.Option(help="Final runs of each variant.", min=1, max=TUNING_SEED)] = 5,
    workers: Annotated[
        int | None, typer.Option(help="Runs at once; as many as there are cores by default.", min=1)
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Folder of all runs; runs/compare/SUITE by default.")] = None,
    only: Annotated[
        str | None,
        typer.Option(help="Some of the variants, with commas.", autocompletion=complete_listed(tuple(VARIANTS))),
    ] = None,
    tasks: Annotated[
        str | None, typer.Option(help="Some of the tasks, with commas.", autocompletion=complete_listed(TASKS))
    ] = None,
    trials: Annotated[int | None, typer.Option(min=1, help="Tuning trials of each variant; all by default.")] = None,
    no_tune: Annotated[bool, typer.Option("--no-tune", help="Take the first setting of each variant.")] = False,
    steps: Annotated[int | None, typer.Option(help="Steps of every run, for a quick trial.", min=1)] = None,
    keep_students: Annotated[bool, typer.Option("--keep-students", help="Keep every trained student.")] = False,
    as_json: Json = False,
) -> None:
    """Compares methods with the same budget for each: N seeds, tuned on validation, intervals, a report.

    After an interruption run the same command again: runs that have ended are kept.
    """
    if importlib.util.find_spec("matplotlib") is None:  # it would be missed at the end, hours later
        raise ConfigError("compare needs matplotlib for its plots; install it with: pip install 'talking-models[demo]'")
    from student_client.compare.report import write_report, write_runs  # here: help and completion need no torch
    from student_client.compare.runner import Runner, known_runs
    from student_client.compare.sheets import as_rich
    from student_client.compare.view import View
    from student_client.compare.workers import Workers

    chosen = find_suite(suite).narrowed(_listed(tasks), trials, steps)
    root = output or Path("runs", "compare", chosen.name)
    command = shlex.join(["student-client", *sys.argv[1:]])
    console = Console(stderr=as_json)
    with _claimed(root, chosen), _interruptible() as signals:
        boards = known_runs(chosen, _listed(only), seeds, not no_tune, root)
        total = sum(1 for board in boards for _ in board.runs())
        missing = sum(len(board.missing) for board in boards)
        console.print(f"{chosen.name}: {total} runs, {total - missing} ended earlier; all in {root}", soft_wrap=True)
        try:
            with Workers(workers or cores(), root / "workers") as pool, View(console, total) as view:
                Runner(boards, root, pool, view, lambda: write_runs(boards, root, command), keep_students).run()
        except (KeyboardInterrupt, Exception):  # a library may put the interrupt into an error of its own
            if not signals:
                raise
            _say_what_is_left(boards, root, command, console)
            raise typer.Exit(128 + signal.SIGINT) from None
        sheets = write_report(boards, root, command)
    for sheet in sheets:
        console.print(as_rich(sheet))
    console.print(f"written: {root}/report.html, results.md, results.json, plots/", soft_wrap=True)
    if as_json:
        sys.stdout.write((root / "results.json").read_text(encoding="utf-8"))


def _say_what_is_left(boards: Sequence[TaskRuns], root: Path, command: str, console: Console) -> None:
    """After an interrupt: the report of the runs that have ended, and how to go on."""
    from student_client.compare.report import write_report

    total = sum(1 for board in boards for _ in board.runs())
    left = sum(len(board.missing) for board in boards)
    if left < total:
        console.print("interrupted; writes the report of the runs that have ended")
        write_report(boards, root, command)
    console.print(f"interrupted, {left} of {total} runs are left; go on with: {command}", soft_wrap=True)


def _listed(names: str | None) -> Sequence[str]:
    return tuple(name.strip() for name in (names or "").split(",") if name.strip())


@contextmanager
def _claimed(root: Path, suite: Suite) -> Iterator[None]:
    """Holds a folder that is new or an earlier comparison's, alone.

    Raises:
        ConfigError: it holds something else, or another comparison is writing to it.
    """
    if root.exists() and any(root.iterdir()) and not (root / _MARK).exists():
        raise ConfigError(
            f"--output: received {root}, which holds files that no comparison has written; give another folder"
        )
    root.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(root / _MARK, timeout=0):
            (root / "suite.yaml").write_text(dump_suite(suite), encoding="utf-8")
            yield
    except Timeout as error:
        raise ConfigError(
            f"--output: another comparison is writing to {root}; wait for it, or give another folder"
        ) from error


@contextmanager
def _interruptible() -> Iterator[Sequence[int]]:
    """Makes the first SIGINT or SIGTERM a KeyboardInterrupt and lets no further one stop what cleans up after it; gives those that came."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    came: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        came.append(number)
        for each in numbers:
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
