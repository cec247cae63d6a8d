"""The command `student-client fleet`: a file to a fleet, its plan shown, run, or printed for elsewhere; trains nothing."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from filelock import FileLock, Timeout
from rich.console import Console
from rich.table import Table

from command_config import hint
from command_config.completion import complete_names
from command_config.line import Json
from command_config.ray_cluster import RayCluster
from student_client.fleet.elsewhere import PLACES, Job
from student_client.fleet.records import write_records
from student_client.fleet.restarts import Restarts
from student_client.fleet.seats import Seat, seats
from student_client.fleet.settings import FleetConfig, read_fleet
from student_client.fleet.view import View, state_counts, summary
from teaching_protocol.errors import ConfigError

if TYPE_CHECKING:
    from student_client.fleet.plan import Planned
    from student_client.fleet.starting import Launch
    from student_client.fleet.supervisor import Supervisor

__all__ = ["fleet"]

_IMAGE = "talking-models-student:latest"


def fleet(
    file: Annotated[Path, typer.Argument(help="YAML or TOML file of the fleet, see docs/fleet.md.")],
    at_once: Annotated[int | None, typer.Option(help="Most students at the same time.", min=1)] = None,
    threads: Annotated[int | None, typer.Option(help="Compute threads of a student.", min=1)] = None,
    output: Annotated[Path | None, typer.Option(help="Folder of all runs; runs/fleet/NAME by default.")] = None,
    index: Annotated[int | None, typer.Option(help="Only the student of this number, from 0.", min=0)] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be run, and where.")] = False,
    place: Annotated[
        str | None,
        typer.Option(
            "--print",
            help=f"Print how to do the same on {', '.join(PLACES)}.",
            autocompletion=complete_names(tuple(PLACES)),
        ),
    ] = None,
    on: Annotated[
        str | None,
        typer.Option(
            "--on", help="ray: train on a Ray cluster instead of this machine.", autocompletion=complete_names(("ray",))
        ),
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option("--ray", help="Address of the cluster, or auto; else RAY_ADDRESS, or Ray started here."),
    ] = None,
    gpus: Annotated[float, typer.Option(help="GPUs that Ray keeps for each student.", min=0.0)] = 0.0,
    image: Annotated[str, typer.Option(help="Image with student-client, for --print kubernetes.")] = _IMAGE,
    as_json: Json = False,
) -> None:
    """Trains many students on this machine; Ctrl-C ends all after their step, the same command goes on with what is left.

    Exit code 0: all have finished; 1: a student was given up; 130 or 143: ended by a signal.
    """
    from student_client.fleet.plan import plan  # here: help and completion need no torch

    found = read_fleet(file, {"at_once": at_once, "threads": threads, "output": output})
    students = plan(found, os.environ)
    if place is not None:
        sys.stdout.write(_printed(place, Job(found, file, file.read_text(encoding="utf-8"), len(students), image)))
        return
    chosen = students if index is None else _one(students, index)
    suffix, console = "" if index is None else f"-{index}", Console(stderr=as_json)
    if on is not None and not dry_run:
        _end(_run_on_ray(on, found, chosen, console, suffix, ray, gpus), found, suffix, as_json)
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    wanted = found.at_once or len(cores) - found.free_cores
    there = seats(cores, max(0, min(wanted, len(chosen))), found.free_cores, found.threads, found.pin)
    if dry_run:
        _show(found, chosen, there, as_json)
        raise typer.Exit(1 if any(each.error for each in chosen) else 0)
    _end(_run(found, chosen, there, console, suffix), found, suffix, as_json)


def _end(code: int, found: FleetConfig, suffix: str, as_json: bool) -> NoReturn:
    """Ends the command, after what a program reads of it."""
    if as_json:
        sys.stdout.write((found.root / f"fleet{suffix}.json").read_text(encoding="utf-8"))
    raise typer.Exit(code)


def _run_on_ray(
    place: str,
    found: FleetConfig,
    students: Sequence[Planned],
    console: Console,
    suffix: str,
    address: str | None,
    gpus: float,
) -> int:
    """Runs the fleet on a cluster: as many students at once as were said, or as it has CPUs for."""
    if place != "ray":
        raise ConfigError(f"--on: received {place!r}, expected ray{hint(place, ['ray'])}")
    from student_client.fleet.on_ray import RayStudents

    with RayCluster(address) as cluster:
        threads = found.threads or 1
        wanted = found.at_once or max(1, int(cluster.room()["CPU"] // threads))
        there = [Seat(number, (), threads) for number in range(min(wanted, len(students)))]
        return _run(found, students, there, console, suffix, RayStudents(cluster, gpus).launch)


def _run(
    found: FleetConfig,
    students: Sequence[Planned],
    there: Sequence[Seat],
    console: Console,
    suffix: str,
    start: Launch | None = None,
) -> int:
    """Runs the fleet to its end, on this machine unless a start is given; gives its exit code."""
    from student_client.fleet.starting import launch
    from student_client.fleet.supervisor import Supervisor

    with _claimed(found.root, suffix), View(console) as view:
        restarts = Restarts(found.restarts, found.first_pause_s, found.longest_pause_s)
        begin = start or launch
        supervisor = Supervisor(students, there, restarts, found.grace_s, show=view.show, say=view.say, launch=begin)

        def changed(record: Any) -> None:
            write_records(found.root / f"fleet{suffix}.json", found.name, supervisor.records)
            view.changed(record)

        supervisor.changed = changed
        view.say(f"{found.name}: {len(students)} students, {len(there)} at once; all in {found.root}")
        with _signals(supervisor):
            supervisor.run()
    records = supervisor.records
    console.print(summary(records, f"{found.name}: {state_counts(records)}"))
    if all(record.state == "finished" for record in records):
        return 0
    if supervisor.signals:
        console.print("interrupted; the same command goes on with what is left", soft_wrap=True)
        return 128 + supervisor.signals[0]
    return 1


def _one(students: Sequence[Planned], index: int) -> list[Planned]:
    if index >= len(students):
        raise ConfigError(f"--index: received {index}, expected one of 0 to {len(students) - 1}")
    return [students[index]]


def _printed(place: str, job: Job) -> str:
    if place not in PLACES:
        raise ConfigError(f"--print: received {place!r}, expected one of {', '.join(PLACES)}{hint(place, PLACES)}")
    return PLACES[place](job)


def _show(found: FleetConfig, students: Sequence[Planned], there: Sequence[Seat], as_json: bool) -> None:
    """What a run would do with each student, and which seats there are."""
    rows = [(each.number, each.name, _does(each), str(each.folder)) for each in students]
    names = ("number", "student", "does", "folder")
    if as_json:
        seats = [asdict(seat) for seat in there]
        typer.echo(
            json.dumps(
                {"name": found.name, "students": [dict(zip(names, row, strict=True)) for row in rows], "seats": seats}
            )
        )
        return
    held = "; ".join(f"cores {','.join(map(str, seat.cores))}: {seat.threads} threads" for seat in there)
    table = Table(title=f"{found.name}: {len(students)} students, {len(there)} at once ({held})")
    for column in names:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*map(str, row))
    Console().print(table)


def _does(planned: Planned) -> str:
    from student_client.fleet.plan import last_checkpoint, start_of

    try:
        how = start_of(planned)
    except ConfigError as error:
        return f"fails: {error}"
    if how == "resume":
        return f"goes on after step {last_checkpoint(planned.folder)}"
    return {"new": "begins", "finished": "has finished"}[how]


@contextmanager
def _signals(supervisor: Supervisor) -> Iterator[None]:
    """SIGINT and SIGTERM end the fleet: the first cleanly, the second at once."""

    def stop(number: int, frame: Any) -> None:
        supervisor.ask_to_end(number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _claimed(root: Path, suffix: str) -> Iterator[None]:
    """Holds the fleet's folder, or one student's part of it, alone.

    Raises:
        ConfigError: another fleet has it, or it cannot be written to.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f".fleet{suffix}", timeout=0):
            yield
    except Timeout as error:
        raise ConfigError(
            f"output: received {root}, where another fleet runs; wait for its end, or give another output"
        ) from error
    except OSError as error:
        raise ConfigError(f"output: received {root}, expected a folder to write to ({error})") from error
