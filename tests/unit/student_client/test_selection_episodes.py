"""Selectors trained over episodes against a real teacher in this process, and the command that does it."""

from __future__ import annotations

import io
import json
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from student_client import cli
from student_client.config import RunConfig
from student_client.reporting.progress import Progress
from student_client.selection.development import hold_out
from student_client.selection.episodes import train_selector
from student_client.selection.selector import Selector
from student_client.training.runs import open_run
from task_data import Split, load_data
from teacher_server.actor import TeacherActor
from teacher_server.app import TeacherApp
from teacher_server.config import ServerConfig
from teacher_server.local import local_teacher
from teaching_protocol.errors import ConfigError, DataError, IncompatibleTeacher
from tests.unit.student_client.run_setup import quiet, run_config, write_csv
from tests.unit.student_client.student_data import data_of
from tests.unit.student_client.test_baselines import headless, informed

KINDS = ("fine_tuning", "response", "feature", "relation")
FIVE = (*KINDS, "conversation")
LEARNING = {"method.selection.learning": {"phase_steps": 4}}


@pytest.fixture(scope="module")
def actor() -> TeacherActor:
    return local_teacher(informed(("no", "yes")), device="cpu", entry=1, exit=3, deterministic=True)


def configured(folder: Path, output: str = "selector", **fields: Any) -> RunConfig:
    """Episodes of 12 steps, phases of 4."""
    fields = {"training.max_steps": 12, "student.dropout": 0.0, **LEARNING} | fields
    return run_config(folder, output, "selection", **fields)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "selector.jsonl").read_text().splitlines()]


@contextmanager
def learned(folder: Path, actor: TeacherActor, **fields: Any) -> Iterator[tuple[Path, list[dict[str, Any]]]]:
    config = configured(folder, **fields)
    done = train_selector(config, 2, teachers=[actor], progress=quiet())
    assert (done.episodes, done.signal) == (2, 0)
    yield config.output, lines(config.output)


def test_a_selector_is_trained_saved_and_teaches_another_student(tmp_path: Path, actor: TeacherActor) -> None:
    with learned(tmp_path, actor) as (folder, phases):
        assert [(each["episode"], each["phase"]) for each in phases] == [(e, p) for e in (1, 2) for p in (1, 2, 3)]
        for each in phases:
            assert each.keys() == {"episode", "phase", "development_loss", "reward", "action", "critic_loss"}
            assert len(each["action"]) == 4
            assert all(0 <= weight <= 1 for weight in each["action"])
        assert phases[1]["reward"] == pytest.approx(
            phases[0]["development_loss"]
            - phases[1]["development_loss"]
            - 0.01 * torch.cosine_similarity(*(torch.tensor(each["action"]) for each in phases[:2]), dim=0).item(),
            abs=1e-5,
        )
        assert phases[2]["development_loss"] < phases[0]["development_loss"], "the student learns"
        fresh = Selector(Selector.load(folder).card, seed=0)
        moved = [
            not torch.equal(a, b) for a, b in zip(fresh.parameters(), Selector.load(folder).parameters(), strict=True)
        ]
        assert all(moved)
        config = run_config(tmp_path, "run", "selection", **{"method.selection.selector": folder, "student.seed": 7})
        with open_run(config, teachers=[actor], progress=quiet()) as trainer:
            result = trainer.run()
    assert result is not None
    assert result.method == "selection"
    last = json.loads((config.output / "metrics.jsonl").read_text().splitlines()[-1])
    assert {f"action.{kind}" for kind in KINDS} <= last["monitors"].keys()
    assert last["monitors"]["fetched"] == 1.0


def test_it_follows_from_the_seed_alone(tmp_path: Path, actor: TeacherActor) -> None:
    found = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        torch.manual_seed(17 * len(found))
        with learned(tmp_path, actor, output=name, **{"training.seed": seed}) as (folder, phases):
            found.append(((folder / "selector.safetensors").read_bytes(), phases))
    assert found[0] == found[1]
    assert found[0][0] != found[2][0]


def test_every_episode_has_a_student_and_codecs_of_its_own_seed(tmp_path: Path, actor: TeacherActor) -> None:
    """With a learning rate of next to nothing, what differs between episodes is where they start; the codec's too."""
    fields = {"training.lr": 1e-12, "method.selection.kinds": FIVE}
    with learned(tmp_path, actor, **fields) as (folder, phases):
        losses = [each["development_loss"] for each in phases]
        assert losses[0] == pytest.approx(losses[2], rel=1e-4)
        assert abs(losses[0] - losses[3]) > 1e-4
        assert Selector.load(folder).card.kinds == FIVE


def test_it_learns_in_full_precision_under_autocast(tmp_path: Path, actor: TeacherActor) -> None:
    fields = {"training.mixed_precision": "bf16", "method.selection.learning": {"phase_steps": 1, "noise": 0.0}}
    with learned(tmp_path, actor, **fields) as (_, phases):
        weights = torch.tensor([each["action"] for each in phases])
    assert (weights - weights.bfloat16().float()).abs().max() > 1e-4, "weights between those that bfloat16 has"


def test_hard_and_printed_are_switches(tmp_path: Path, actor: TeacherActor) -> None:
    fields = {"method.selection.learning": {"phase_steps": 5, "hard": True, "critic_target": "printed"}}
    with learned(tmp_path, actor, **fields) as (folder, phases):
        assert {weight for each in phases for weight in each["action"]} <= {0.0, 1.0}
        assert [each["phase"] for each in phases] == [1, 2, 3] * 2, "the last phase may be shorter"
        assert Selector.load(folder).card.is_hard


@pytest.mark.parametrize("modality", ["text", "ratings", "image"])
def test_development_rows_are_labelled_and_not_trained_on(modality: str) -> None:
    whole = data_of(modality).train
    labelled = torch.arange(len(whole)) % 4 > 0
    train = replace(whole, labelled=labelled, columns={**whole.columns, "row": torch.arange(len(whole))})
    rest, held = hold_out(train, 0.3, seed=5)
    assert held.labelled.all()
    ours, theirs = (set(each.columns["row"].tolist()) for each in (rest, held))  # type: ignore[union-attr]
    assert not ours & theirs
    assert ours | theirs == set(range(len(whole)))
    assert abs(len(held) - 0.3 * int(labelled.sum())) <= 2
    again = hold_out(train, 0.3, seed=5)[1]
    assert torch.equal(again.labels, held.labels)
    other = hold_out(train, 0.3, seed=6)[1]
    assert set(other.columns["row"].tolist()) != theirs  # type: ignore[union-attr]
    rows = held.columns["row"]
    assert torch.equal(held.labels, whole.labels[rows])  # type: ignore[index]
    if modality != "ratings":
        assert set(held.labels.tolist()) == set(rest.labels[rest.labelled].tolist()) == set(whole.labels.tolist())


def split(labels: list[Any], labelled: list[bool] | None = None) -> Split:
    mask = [True] * len(labels) if labelled is None else labelled
    texts = [f"row {number}" for number in range(len(labels))]
    return Split({"text": texts}, texts, torch.tensor(labels), torch.tensor(mask))


def test_every_class_is_held_out_and_none_wholly() -> None:
    rest, held = hold_out(split([0] * 8 + [1] * 2 + [2]), 0.05, seed=0)
    assert sorted(held.labels.tolist()) == [0, 1]
    assert sorted(set(rest.labels.tolist())) == [0, 1, 2]


@pytest.mark.parametrize(
    "train",
    [split([0, 1]), split([0, 0, 1, 1], [False] * 4), split([0.5, 1.5, 2.5]), split([0.5])],
    ids=["one row a class", "no label", "too small a share", "one row"],
)
def test_a_development_split_that_would_be_empty_is_refused(train: Split) -> None:
    with pytest.raises(DataError, match=r"would be empty.*raise data.labelled or .*development_share"):
        hold_out(train, 0.1, seed=0)


def test_validation_and_test_rows_are_never_looked_at(tmp_path: Path, actor: TeacherActor) -> None:
    """Other validation and test rows, same training rows: the same selector. And no row of them is among the held."""
    config = configured(tmp_path)
    data = load_data(config.data)
    texts = {name: set(getattr(data, name).columns["text"]) for name in ("train", "validation", "test")}
    held = set(hold_out(data.train, 0.2, 0)[1].columns["text"])  # type: ignore[arg-type]
    assert held <= texts["train"]
    assert not held & (texts["validation"] | texts["test"])
    asked: list[bytes] = []
    forward = actor.forward

    def noting(request: Any, call: Any) -> Any:
        asked.extend(bytes(row[row > 0].tolist()) for row in request.inputs["text"])
        return forward(request, call)

    actor.forward = noting  # type: ignore[method-assign]
    try:
        train_selector(config, 1, teachers=[actor], progress=quiet())
    finally:
        actor.forward = forward  # type: ignore[method-assign]
    assert {text.decode() for text in asked} <= texts["train"] - held


def test_a_teacher_without_the_head_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    config = configured(tmp_path)
    with pytest.raises(IncompatibleTeacher, match=r"`logits`.*leave response out"):
        train_selector(config, 1, teachers=[local_teacher(headless())], progress=quiet())
    assert not config.output.exists()


def test_a_folder_that_holds_a_selector_is_refused(tmp_path: Path, actor: TeacherActor) -> None:
    config = configured(tmp_path)
    with pytest.raises(ConfigError, match="episodes: received 0"):
        train_selector(config, 0, teachers=[actor], progress=quiet())
    train_selector(config, 1, teachers=[actor], progress=quiet())
    with pytest.raises(ConfigError, match=r"selector\.json.*--overwrite"):
        train_selector(config, 1, teachers=[actor], progress=quiet())
    train_selector(config, 1, teachers=[actor], progress=quiet(), overwrite=True)
    assert len(lines(config.output)) == 3


class _Interrupting(io.StringIO):
    """An output that raises a signal where the end of episode 1 is reported."""

    def write(self, text: str) -> int:
        if "episode 1/" in text:
            signal.raise_signal(signal.SIGINT)
        return super().write(text)


def test_ctrl_c_leaves_the_selector_of_the_last_finished_episode(tmp_path: Path, actor: TeacherActor) -> None:
    config = configured(tmp_path)
    before = signal.getsignal(signal.SIGINT)
    done = train_selector(config, 3, teachers=[actor], progress=Progress("selector", file=_Interrupting()))
    assert (done.episodes, done.signal) == (1, signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
    one = configured(tmp_path, "one")
    train_selector(one, 1, teachers=[actor], progress=quiet())
    weights = [(each.output / "selector.safetensors").read_bytes() for each in (config, one)]
    assert weights[0] == weights[1]


def test_the_command_makes_a_selector_that_a_run_uses(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    model_folder: Callable[[str], Path],
) -> None:
    """Over a real port, without a head for the task: response is left out."""

    def command(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["student-client", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0), *capsys.readouterr()

    shared = ["--data", str(write_csv(tmp_path)), "--labelled", "60", "--unlabelled", "40", "--size", "tiny"]
    shared += ["--seed", "3", "--max-steps", "6"]
    for setting in (
        "method.selection.kinds=fine_tuning,feature,relation",
        "method.selection.learning.phase_steps=3",
        "training.batch_size=8",
        "training.tensorboard=false",
        "training.device=cpu",
        "training.threads=1",
        "data.validation=40",
        "data.test=40",
    ):
        shared += ["--set", setting]
    server = ServerConfig(model=str(model_folder("bert")), device="cpu", entry=1, exit=3, port=0, metrics_port=-1)
    with TeacherApp(server) as app:
        shared += ["--teacher", f"127.0.0.1:{app.port}"]
        capsys.readouterr()
        folder = tmp_path / "selector"
        code, out, errors = command("select", *shared, "--episodes", 2, "--output", folder)
        assert (code, errors) == (0, "")
        assert "episode 2/2: development loss" in out
        assert f"--set method.selection.selector={folder}" in out
        assert len(lines(folder)) == 4
        run = ("--method", "selection", "--output", tmp_path / "run", "--set", f"method.selection.selector={folder}")
        code, out, errors = command("train", *shared, *run)
        assert (code, errors) == (0, "")
        assert "selection: test accuracy" in out
        without = ("--method", "selection", "--output", tmp_path / "other")
        code, _, errors = command("train", *shared, *without)
        assert code == 1
        assert "student-client select --output FOLDER" in errors
        code, _, errors = command("select", *shared, "--output", folder)
        assert code == 1
        assert "--overwrite" in errors
