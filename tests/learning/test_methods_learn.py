"""Every method learns on text, ratings and images, against teachers the product has trained and serves; minutes in all."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from student_client.config import RunConfig, load_run_config
from student_client.methods import METHODS
from student_client.reporting.progress import Progress
from student_client.selection.episodes import train_selector
from student_client.training.runs import train
from teacher_server.app import TeacherApp
from teacher_server.config import ServerConfig

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

DATA: dict[str, dict[str, Any]] = {
    "text": {"name": "reuters_r8", "labelled": 200, "unlabelled": 800, "validation": 300, "test": 600},
    "ratings": {"name": "movielens", "labelled": 2000, "unlabelled": 1000, "validation": 500, "test": 1000},
    "image": {"name": "digits", "labelled": 100, "unlabelled": 700, "validation": 300, "test": 400},
}
TRIVIAL = {"text": 0.55, "ratings": 1.15, "image": 0.15}
"""What the commonest class, or the mean rating, scores on the test rows, generously."""

Configure = Callable[..., RunConfig]


@pytest.fixture(scope="module")
def configure(tmp_path_factory: pytest.TempPathFactory) -> Configure:
    root = tmp_path_factory.mktemp("learn")

    def config(modality: str, output: str, method: str, **fields: Any) -> RunConfig:
        values = {
            "data": DATA[modality],
            "student": {"size": "tiny"} | ({"max_tokens": 32, "vocabulary_size": 4096} if modality == "text" else {}),
            "method.names": method,
            "training.max_steps": 150,
            "training.lr": 3e-3,
            "training.evaluate_every": 25,
            "training.tensorboard": False,
            "output": root / modality / output,
        }
        return load_run_config(None, values | {name.replace("__", "."): value for name, value in fields.items()})

    return config


@pytest.fixture(scope="module")
def addresses(configure: Configure) -> Iterator[dict[str, list[str]]]:
    """Two teachers of each modality, larger students that were trained first."""
    with ExitStack() as stack:
        found: dict[str, list[str]] = {}
        for modality in DATA:
            for seed in range(2):
                config = configure(modality, f"teacher-{seed}", "task_only", student__size="small", student__seed=seed)
                assert train(config, progress=quiet()) is not None
                server = ServerConfig(model=str(config.output), port=0, metrics_port=-1, handoff_s=0)
                app = stack.enter_context(TeacherApp(server))
                found.setdefault(modality, []).append(f"127.0.0.1:{app.port}")
        yield found


@pytest.mark.parametrize("modality", DATA)
@pytest.mark.parametrize("method", METHODS)
def test_it_learns(method: str, modality: str, configure: Configure, addresses: dict[str, list[str]]) -> None:
    first, second = addresses[modality]
    asked: dict[str, Any] = {"teacher__address": first, "complementary": [{"address": second}]}
    if method == "selection":
        selector = configure(modality, "selector", method, **asked, training__max_steps=60)
        train_selector(selector, 2, progress=quiet())
        asked["method__selection__selector"] = selector.output
    config = configure(modality, method, method, **asked)
    result = train(config, progress=quiet())
    assert result is not None
    if modality == "ratings":
        assert result.test < TRIVIAL[modality]
    else:
        assert result.test > TRIVIAL[modality]
    lines = [json.loads(line) for line in (config.output / "metrics.jsonl").read_text().splitlines()]
    losses = [
        statistics.mean(line["validation"]["loss"] for line in part)
        for part in (validated(lines)[:1], validated(lines)[-2:])
    ]
    assert losses[1] < losses[0] * 1.02, "the validation loss has not risen"


def validated(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [line for line in lines if "validation" in line]


def quiet() -> Progress:
    return Progress("test", quiet=True)
