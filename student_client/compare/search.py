"""The command `student-client search`: settings of one variant of a comparison, drawn by Ray Tune, chosen by validation alone."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from command_config.completion import complete_names
from command_config.line import Json
from command_config.ray_cluster import RayCluster
from student_client.compare.catalogue import SUITES, TASKS, find_suite
from student_client.compare.plan import TUNING_SEED, best_trial, run_config
from student_client.compare.records import Planned, Record, lower_is_better, record_of, write_results
from student_client.compare.spaces import Choices, Space, read_space, with_chosen
from student_client.compare.suites import Suite, dump_suite
from student_client.compare.variants import VARIANTS
from student_client.files import replace_file
from student_client.processes import last_line, python, start
from teaching_protocol.errors import ConfigError, ServiceError

__all__ = ["search"]


def search(
    suite: Annotated[
        str,
        typer.Option(
            help=f"One of {', '.join(SUITES)}, or a YAML file of yours.", autocompletion=complete_names(tuple(SUITES))
        ),
    ],
    task: Annotated[str, typer.Option(help="A task of the suite.", autocompletion=complete_names(TASKS))],
    variant: Annotated[str, typer.Option(help="A variant of it.", autocompletion=complete_names(tuple(VARIANTS)))],
    space: Annotated[Path, typer.Option(help="YAML file: what each field may be, see docs/scale.md.")],
    teacher: Annotated[
        list[str] | None, typer.Option(help="Address of each teacher that the variant asks, in its order.")
    ] = None,
    trials: Annotated[int, typer.Option(help="Settings that are tried.", min=1)] = 16,
    at_once: Annotated[
        int | None, typer.Option(help="Most at the same time; as the cluster has CPUs by default.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of what is drawn.")] = 0,
    output: Annotated[Path | None, typer.Option(help="Folder of all trials; runs/search/VARIANT by default.")] = None,
    ray: Annotated[
        str | None,
        typer.Option("--ray", help="Address of the cluster, or auto; else RAY_ADDRESS, or Ray started here."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Searches settings on a Ray cluster; the best by validation becomes a suite, which `compare` runs with several seeds.

    Every trial has the training seed of `compare`'s own tuning, which no final run has. The test split chooses nothing.
    """
    known, drawn = find_suite(suite), read_space(space)
    with_chosen(
        known, task, variant, {name: _any_of(each) for name, each in drawn.items()}
    )  # said before hours are spent
    asked = known.variants[variant].teachers
    addresses = list(teacher or ())
    if len(addresses) != len(asked):
        raise ConfigError(
            f"--teacher: received {len(addresses)}, expected one for each of {', '.join(asked) or 'none'}"
        )
    root = _free_folder((output or Path("runs", "search", variant)).resolve())
    prepare = _Preparation(known, task, variant, addresses, root)
    with redirect_stdout(sys.stderr), RayCluster(ray) as cluster:  # Tune prints, and the output is ours
        found = _tried(cluster, prepare, drawn, trials, at_once or 0, seed)
    write_results(root / "results.json", {"suite": known.name, "seed": seed}, found)
    best = best_trial(found)
    if best is None:
        raise ServiceError(f"all {len(found)} trials failed, such as: {found[0].error}; their logs lie in {root}")
    chosen = next(each for each in found if each.trial == best)
    replace_file(root / "suite.yaml", dump_suite(with_chosen(known, task, variant, chosen.settings)))
    if as_json:
        said = {"output": str(root), "suite": str(root / "suite.yaml"), "trial": best, "trials": trials}
        said |= {"metric": chosen.metric, "validation": chosen.validation, "settings": dict(chosen.settings)}
        typer.echo(json.dumps(said, indent=1))
        return
    Console().print(
        f"{variant} on {task}: trial {best} of {trials}, validation {chosen.metric} {chosen.validation:.4f}, with "
        f"{dict(chosen.settings)}; go on with: student-client compare --suite {root / 'suite.yaml'}",
        soft_wrap=True,
    )


def _free_folder(root: Path) -> Path:
    """The folder, made.

    Raises:
        ConfigError: it holds something.
    """
    if root.exists() and any(root.iterdir()):
        raise ConfigError(f"--output: received {root}, which holds files; give another folder")
    root.mkdir(parents=True, exist_ok=True)
    return root


class _Preparation:
    """What every trial has, and how one becomes a run."""

    def __init__(self, suite: Suite, task: str, variant: str, addresses: Sequence[str], root: Path) -> None:
        self.root = root
        self._suite, self._task, self._variant, self._addresses = suite, task, variant, addresses

    def planned(self, trial: int) -> Planned:
        """A trial as a run of the comparison."""
        return Planned(self._task, self._variant, "tune", trial, trial, TUNING_SEED)

    def begin(self, trial: int, settings: Mapping[str, Any]) -> tuple[list[str], Path]:
        """Writes the trial's configuration; gives the command that trains it, and its folder."""
        suite = with_chosen(self._suite, self._task, self._variant, settings)
        run = Planned(self._task, self._variant, "tune", trial, 0, TUNING_SEED)
        config = run_config(suite, run, self._addresses, self.root)
        config.output.mkdir(parents=True)
        path = config.output / "student.json"
        replace_file(path, config.model_dump_json(indent=2) + "\n")
        return python("student_client.fleet.child", path), config.output

    def record(self, trial: int, settings: Mapping[str, Any]) -> Record:
        """What came of a trial, from its folder."""
        planned = self.planned(trial)
        try:
            return record_of(self.root / planned.folder, planned, settings)
        except (OSError, ValueError, ConfigError):
            log = self.root / planned.folder / "student.log"
            return Record.failed(planned, settings, last_line(log) if log.exists() else "it never began")


def _tried(
    cluster: RayCluster, prepare: _Preparation, space: Space, trials: int, at_once: int, seed: int
) -> list[Record]:
    """Every trial's record; Tune draws the settings and places the trials, and knows of nothing but the validation."""
    from ray import tune
    from ray.tune.search.basic_variant import BasicVariantGenerator

    drawn = {name: _domain(tune, each) for name, each in space.items()}
    drawn["trial"] = tune.grid_search(list(range(trials)))
    tuner = tune.Tuner(
        tune.with_resources(_trainable(prepare), {"cpu": 1}),
        param_space=drawn,
        tune_config=tune.TuneConfig(
            metric="score", mode="max", search_alg=BasicVariantGenerator(random_state=seed, max_concurrent=at_once)
        ),
        run_config=tune.RunConfig(name="tune", storage_path=str(prepare.root), verbose=0),
    )
    grid = tuner.fit()
    settings = {each.config["trial"]: _settings(each.config) for each in grid}
    return [prepare.record(trial, settings[trial]) for trial in sorted(settings)]


def _trainable(prepare: _Preparation) -> Callable[[dict[str, Any]], dict[str, float]]:
    """One trial as Tune calls it: a process of its own, which ends when this one does."""

    def trial(drawn: dict[str, Any]) -> dict[str, float]:
        number = drawn["trial"]
        settings = _settings(drawn)
        command, folder = prepare.begin(number, settings)
        process = start(command, folder / "student.log", stdin=subprocess.PIPE)
        if process.wait():
            raise ServiceError(
                f"trial {number} ended with code {process.returncode}: {last_line(folder / 'student.log')}"
            )
        record = prepare.record(number, settings)
        sign = -1.0 if lower_is_better(record.metric) else 1.0
        return {"score": sign * (record.validation or 0.0)}

    return trial


def _settings(drawn: Mapping[str, Any]) -> dict[str, Any]:
    """What was drawn without the number of the trial, as plain values: NumPy's would not go into YAML."""
    return {name: getattr(each, "item", lambda each=each: each)() for name, each in drawn.items() if name != "trial"}


def _domain(tune: Any, each: Any) -> Any:
    if isinstance(each, Choices):
        return tune.choice(list(each.choices))
    return (tune.loguniform if each.log else tune.uniform)(each.low, each.high)


def _any_of(each: Any) -> Any:
    return each.choices[0] if isinstance(each, Choices) else each.low
