"""Runs whose training rows are a stream: resumed, wound back, killed and divided, they are the unbroken run to the bit."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from safetensors.torch import load_file

from student_client.config import RunConfig
from student_client.selection.episodes import train_selector
from student_client.students import build_student
from student_client.training.runs import open_run, train
from student_client.training.stream import Place, Stream
from task_data import load_data
from teacher_server.local import local_teacher
from teaching_protocol.errors import ConfigError, DataError
from tests.unit.student_client.run_setup import quiet, run_config
from tests.unit.student_client.student_data import texts

ROOT = Path(__file__).parents[3]
BLOCK, ROWS = 30, 100


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def stream_folder(folder: Path, rows: int = ROWS) -> Path:
    """Texts in two shards of JSON lines; every fifth training row has no label."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, count, seed in (("train", rows, 1), ("validation", 30, 2), ("test", 30, 3)):
        lines = [
            {"text": f"{text} {part}{row}", "label": "yes" if "good" in text else "no"}
            for row, text in enumerate(texts(count, seed))
        ]
        if part == "train":
            lines = [line | {"label": None} if row % 5 == 0 else line for row, line in enumerate(lines)]
            halves = {"train-0": lines[: count // 2], "train-1": lines[count // 2 :]}
        else:
            halves = {part: lines}
        for name, half in halves.items():
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in half))
    return folder


def streamed(folder: Path, output: str = "run", method: str = "task_only", **fields: Any) -> RunConfig:
    path = folder / "data"
    given = {
        "data__path": path if path.exists() else stream_folder(path),
        "data__streaming": True,
        "data__labelled": None,
        "data__unlabelled": None,
        "data__validation": 30,
        "data__test": 30,
        "data__shuffle_rows": BLOCK,
    }
    return run_config(folder, output, method, **given | fields)


def stream_of(config: RunConfig, rank: tuple[int, int] = (0, 1)) -> Stream:
    data = load_data(config.data)
    assert data.stream is not None
    student = build_student(config.student, data)
    return Stream(data.stream, student, config.training, ["text"], torch.device("cpu"), rank)


def words(batch: Any) -> list[str]:
    return [bytes(row[row > 0].tolist()).decode().split()[-1] for row in batch.teacher["text"]]


@pytest.mark.parametrize("fields", [{}, {"training__labelled_share": 1.0}, {"training__group_by_length": True}])
def test_a_pass_gives_every_row_once_and_goes_on_from_any_place(tmp_path: Path, fields: dict[str, Any]) -> None:
    config = streamed(tmp_path, **fields)
    stream = stream_of(config)
    places, found = [stream.place], []
    while stream.place.epoch < 2:
        found.append(words(stream.next()))
        places.append(stream.place)
    epochs = [[at for at, place in enumerate(places[1:]) if place.epoch == number] for number in (0, 1)]
    for numbers in epochs:
        seen = sorted(word for at in numbers for word in found[at])
        assert seen == sorted(
            f"train{row}" for row in range(ROWS) if row % 5 or "training__labelled_share" not in fields
        )
    assert [found[at] for at in epochs[0]] != [found[at] for at in epochs[1]]
    assert {place.block for place in places[:-1]} == set(range(8))
    for at in (3, 11, 15, 1):  # on and back, within a block and between blocks, and in a stream of its own
        for other in (stream, stream_of(config)):
            other.go_to(Place(**json.loads(json.dumps(vars(places[at])))))
            assert [words(other.next()) for _ in range(6)] == found[at : at + 6]


def test_ranks_divide_each_batch(tmp_path: Path) -> None:
    config = streamed(tmp_path)
    whole, *parts = (stream_of(config, rank) for rank in ((0, 1), (0, 2), (1, 2)))
    for _ in range(20):
        batch, mine = whole.next(), [part.next() for part in parts]
        assert sorted(words(batch)) == sorted(word for each in mine for word in words(each))
        assert {each.part for each in mine} == {(len(words(each)), len(batch)) for each in mine}


@pytest.mark.parametrize("method", ["task_only", "talking"])
def test_resumed_equals_unbroken(tmp_path: Path, model_folder: Callable[[str], Path], method: str) -> None:
    """Over blocks and passes; the student, its codec, both optimizers and the teacher's session."""

    def trained(output: str, steps: int | None = None, resume: bool = False) -> dict[str, Any]:
        teachers = [local_teacher(str(model_folder("bert")), device="cpu", entry=1, exit=3, deterministic=True)]
        config = streamed(tmp_path, output, method)
        given = teachers if method == "talking" else []
        with open_run(config, teachers=given, progress=quiet(), resume=resume) as trainer:
            trainer.run(steps)
            tensors = {**trainer.student.state_dict(), **{f"m.{k}": v for k, v in trainer.method.state_dict().items()}}
            return {"tensors": tensors, "session": trainer.teachers.export_states(), "place": trainer.batches.place}

    whole = trained("whole")
    assert whole["place"].epoch >= 1
    for steps in (5, 4, 6):
        trained("broken", steps, resume=(tmp_path / "broken").exists())
    broken = trained("broken", resume=True)
    assert (broken["place"].epoch, broken["place"].block) == (whole["place"].epoch, whole["place"].block)
    assert whole["session"] == broken["session"]
    for name, value in whole["tensors"].items():
        assert torch.equal(value, broken["tensors"][name]), name


KILLED = """
import os, signal, sys
from pathlib import Path
from student_client.config import load_run_config
from student_client.reporting.progress import Progress
from student_client.training.runs import open_run
with open_run(load_run_config(Path(sys.argv[1]), {}), progress=Progress("killed", quiet=True)) as trainer:
    take, left = trainer.steps.take, [int(sys.argv[2])]
    def counted(*arguments):
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return take(*arguments)
    trainer.steps.take = counted
    trainer.run()
"""


def test_killed_equals_unbroken(tmp_path: Path) -> None:
    """kill -9 between checkpoints, in another block than they were written in."""
    assert train(streamed(tmp_path, "whole"), progress=quiet()) is not None
    config = streamed(tmp_path, "broken")
    path = tmp_path / "broken.json"
    path.write_text(config.model_dump_json())
    command = [sys.executable, "-c", KILLED, str(path), "12"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert train(config, resume=True, progress=quiet()) is not None
    found = [tmp_path / name for name in ("whole", "broken")]
    for name in ("model.safetensors", "head.safetensors"):
        first, second = (load_file(folder / "student" / name) for folder in found)
        assert all(torch.equal(value, second[key]) for key, value in first.items())
    last = [sorted((folder / "checkpoints").iterdir())[-1] for folder in found]
    assert last[0].name == last[1].name == "step-00000020"
    assert (last[0] / "student.safetensors").read_bytes() == (last[1] / "student.safetensors").read_bytes()
    assert (last[0] / "optimizer.safetensors").read_bytes() == (last[1] / "optimizer.safetensors").read_bytes()


def test_steps_are_to_be_said(tmp_path: Path) -> None:
    config = streamed(tmp_path, training__max_steps=None)
    with pytest.raises(
        ConfigError, match=r"training\.max_steps: received none with data\.streaming.*training\.epochs \(10\) says"
    ):
        train(config, progress=quiet())


def test_a_selector_wants_rows_in_memory(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.streaming: a selector holds rows out"):
        train_selector(streamed(tmp_path, method="selection"), 1, progress=quiet())


def test_a_stream_of_nothing_usable_ends(tmp_path: Path) -> None:
    config = streamed(tmp_path)
    lines = [json.dumps({"text": f"a {row}", "label": None}) + "\n" for row in range(70)]
    for name in ("train-0", "train-1"):
        (tmp_path / "data" / f"{name}.jsonl").write_text("".join(lines))
    with pytest.raises(DataError, match="no row of it can be trained on"):
        train(config, progress=quiet())
