"""The teachers of a task: how each is made, once, and which server shows it to all runs; knows no result."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from student_client.compare.records import agree
from student_client.compare.suites import Role, SuiteTask, TeacherPlan, Weights
from student_client.config import RunConfig, load_run_config
from student_client.processes import Served, python, teacher_server
from task_data.config import DataConfig
from teaching_protocol.errors import TeacherUnavailable

__all__ = ["Recipe", "Servers", "TeacherName", "read_scores", "recipes", "served_model", "teacher_facts"]

TeacherName = tuple[Role, Weights]

_MADE = "made.json"
_CONTROL_SEED = 7
_STARTS = 3
_SERVER = {"drain_s": 0.0, "handoff_s": 0.0}  # every student ends before the server is ended


@dataclass(frozen=True, eq=False)
class Recipe:
    """How a folder is made by a worker's job, after the recipes it `needs`.

    `facts` are what it is made of: a folder made of the same is not made again.
    """

    folder: Path
    job: Mapping[str, Any]
    facts: Mapping[str, Any]
    needs: tuple[Path, ...] = ()

    @property
    def is_made(self) -> bool:
        """Whether the folder is there and was made of the same, as `agree` has it."""
        try:
            return agree(json.loads((self.folder / _MADE).read_text()), json.loads(json.dumps(self.facts)))
        except (OSError, ValueError):
            return False

    def note(self) -> None:
        """Notes in the folder what it was made of."""
        (self.folder / _MADE).write_text(json.dumps(self.facts, indent=2) + "\n", encoding="utf-8")


def recipes(task: SuiteTask, name: TeacherName, root: Path) -> Iterator[Recipe]:
    """What must be made before a teacher of a task can be served, in order.

    The control is the foundation's or the complementary's architecture with random weights; where the teacher has a
    head from `finetune`, so has the control, trained by the same command.

    Args:
        task: of the suite.
        name: role and weights.
        root: folder of the task's teachers.
    """
    role, weights = name
    plan = _plan(task, role)
    if plan.student is not None:
        yield _student(task, plan, name, root)
        return
    if weights == "trained":
        if plan.finetune is not None:
            yield _finetuned(task, plan, str(plan.model), root / f"{role}-trained")
        return
    blank = root / f"{role}-blank"
    of = list(recipes(task, (role, "trained"), root))
    yield from of
    source = of[-1].folder if of else Path(str(plan.model))
    job = {"kind": "randomise", "source": str(source), "student": None, "seed": _CONTROL_SEED, "output": str(blank)}
    facts = {"of": of[-1].facts if of else plan.model, "seed": _CONTROL_SEED}
    yield Recipe(blank, job, facts, tuple(each.folder for each in of))
    if plan.finetune is not None:
        yield _finetuned(task, plan, str(blank), root / f"{role}-random", (blank,))


def served_model(task: SuiteTask, name: TeacherName, root: Path) -> str:
    """What the server of a teacher is given as its model, once all is made."""
    role, weights = name
    plan = _plan(task, role)
    if plan.student is None and plan.finetune is None:
        return str(plan.model) if weights == "trained" else str(root / f"{role}-blank")
    return str(root / f"{role}-{weights}")


def teacher_facts(task: SuiteTask, name: TeacherName, root: Path) -> dict[str, Any]:
    """What a teacher is made of, for telling whether a run asked the same one."""
    made, plan = list(recipes(task, name, root)), _plan(task, name[0])
    return {"made": made[-1].facts if made else {"model": plan.model}, "server": plan.server}


@dataclass
class Servers:
    """One server for each teacher that is asked for, started when it is first asked; all end with `stack`.

    A server that has died is started again, a few times.
    """

    task: SuiteTask
    root: Path
    stack: ExitStack
    _served: dict[TeacherName, Served] = field(default_factory=dict)
    _starts: dict[TeacherName, int] = field(default_factory=dict)

    def address(self, name: TeacherName) -> str:
        """Where a teacher serves.

        Raises:
            TeacherUnavailable: its server does not start, or has died too often.
        """
        known = self._served.get(name)
        if known is None or known.process.poll() is not None:
            self._served[name] = known = self._start(name)
        return known.address

    def is_scored(self, name: TeacherName) -> bool:
        """Whether it is known how good a teacher itself is."""
        found = read_scores(self.root, name)
        return found is not None and found["facts"] == json.loads(json.dumps(self._facts(name)))

    def scoring(self, name: TeacherName) -> dict[str, Any]:
        """The worker's job that scores a teacher.

        Raises:
            TeacherUnavailable: as `address`.
        """
        data = self.task.data.model_dump(mode="json")
        output = str(_scores(self.root, name))
        return {
            "kind": "score",
            "address": self.address(name),
            "data": data,
            "facts": self._facts(name),
            "output": output,
        }

    def _facts(self, name: TeacherName) -> dict[str, Any]:
        return {**teacher_facts(self.task, name, self.root), "data": self.task.data.model_dump(mode="json")}

    def _start(self, name: TeacherName) -> Served:
        role, weights = name
        number = self._starts[name] = self._starts.get(name, 0) + 1
        log = self.root / f"{role}-{weights}.server-{number}.log"
        if number > _STARTS:
            raise TeacherUnavailable(
                f"the server of the {weights} {role} teacher has died {_STARTS} times; its last log is "
                f"{log.with_name(f'{role}-{weights}.server-{_STARTS}.log')}"
            )
        settings = {"model": served_model(self.task, name, self.root), **_SERVER, **_plan(self.task, role).server}
        return self.stack.enter_context(teacher_server(settings, self.root / f"{role}-{weights}.json", log))


def read_scores(root: Path, name: TeacherName) -> dict[str, Any] | None:
    """What a teacher under `root` scores by itself: its metric, `validation` and `test`; None if that is not known."""
    try:
        found: dict[str, Any] = json.loads(_scores(root, name).read_text())
    except (OSError, ValueError):
        return None
    return found


def _scores(root: Path, name: TeacherName) -> Path:
    return root / f"{'-'.join(name)}.scores.json"


def _plan(task: SuiteTask, role: Role) -> TeacherPlan:
    plan = task.foundation if role == "foundation" else task.complementary
    assert plan is not None, "a variant is compared where the task has its teachers"
    return plan


def _student(task: SuiteTask, plan: TeacherPlan, name: TeacherName, root: Path) -> Recipe:
    role, weights = name
    folder = root / f"{role}-{weights}"
    run = _student_run(task, plan, folder)
    facts = {"run": run.identity(), "weights": weights}
    values = run.model_dump(mode="json")
    if weights == "trained":
        return Recipe(folder, {"kind": "train", "config": values, "keep_student": True}, facts)
    job = {"kind": "randomise", "source": None, "student": values, "seed": _CONTROL_SEED, "output": str(folder)}
    return Recipe(folder, job, facts)


def _student_run(task: SuiteTask, plan: TeacherPlan, folder: Path) -> RunConfig:
    values: dict[str, Any] = {"data": task.data.model_dump(mode="json"), "student.size": "complementary"}
    values |= {"training.tensorboard": False, "training.threads": 1}
    values |= {name: value for name, value in task.settings.items() if name.startswith("training.")}
    values |= {**(plan.student or {}), "method.names": ("task_only",), "output": folder}
    return load_run_config(None, values)


def _finetuned(task: SuiteTask, plan: TeacherPlan, model: str, folder: Path, needs: Sequence[Path] = ()) -> Recipe:
    settings = {**_data_settings(task.data), **(plan.finetune or {})}
    tokens = plan.server.get("max_tokens")
    settings |= {} if tokens is None else {"max_tokens": tokens}
    name = str(task.data.path) if task.data.name == "file" else task.data.name
    command = python("teacher_server", "finetune", "--model", model, "--data", name, "--out", folder, "--overwrite")
    for field_name, value in settings.items():
        command += ["--set", f"{field_name}={_inline(value)}"]
    job = {"kind": "command", "command": command, "said": f"{folder}.log"}
    return Recipe(folder, job, {"model": plan.model, "blank": bool(needs), "settings": settings}, tuple(needs))


def _data_settings(data: DataConfig) -> dict[str, Any]:
    values = data.model_dump(mode="json", exclude_defaults=True, exclude={"name", "path"})
    if data.name != "file" and data.path is not None:
        values["path"] = str(data.path)
    return {f"data.{name}": value for name, value in values.items()}


def _inline(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("...\n").strip()
