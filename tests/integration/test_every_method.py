"""Every method on text, ratings and images through real servers: students' own folders, served in another process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from student_client.config import RunConfig, load_run_config
from student_client.methods import METHODS
from student_client.selection.episodes import train_selector
from student_client.students import build_student
from student_client.training.runs import train
from student_models import load_student
from task_data import load_data
from tests.integration.processes import Address, ServerProcess
from tests.unit.student_client.run_setup import quiet, write_csv
from tests.unit.task_data.test_movielens import ratings, write

STEPS = 6
DATA: dict[str, dict[str, Any]] = {
    "text": {"name": "file", "labelled": 60, "unlabelled": 40, "validation": 40, "test": 40},
    "ratings": {"name": "movielens", "labelled": 40, "unlabelled": 20, "validation": 15, "test": 15},
    "image": {"name": "digits", "labelled": 60, "unlabelled": 40, "validation": 40, "test": 40},
}
Configure = Callable[..., RunConfig]


@pytest.fixture(scope="module")
def configure(tmp_path_factory: pytest.TempPathFactory) -> Configure:
    """Gives the configuration of a short run of a modality: its folder, its method, and fields to lay over it."""
    root = tmp_path_factory.mktemp("every")
    paths = {"text": write_csv(root), "ratings": write(root / "ml", ratings()), "image": None}

    def config(modality: str, output: str, method: str, **fields: Any) -> RunConfig:
        values = {
            "data": DATA[modality] | {"path": paths[modality]},
            "student.size": "tiny",
            "method.names": method,
            "method.message_width": 16,
            "training.max_steps": STEPS,
            "training.batch_size": 8,
            "training.lr": 3e-3,
            "training.warmup_steps": 1,
            "training.tensorboard": False,
            "training.device": "cpu",
            "output": root / modality / output,
        }
        return load_run_config(None, values | {name.replace("__", "."): value for name, value in fields.items()})

    return config


@pytest.fixture(scope="module")
def addresses(configure: Configure) -> Iterator[dict[str, Address]]:
    """Two teachers of each modality, made and served by the product itself."""
    served = {}
    for modality in DATA:
        for seed, name in enumerate(("foundation", "complementary")):
            config = configure(modality, name, "task_only", student__seed=seed, student__width=(16, 24)[seed] * 2)
            assert train(config, progress=quiet()) is not None
            served[f"{modality} {name}"] = {"model": str(config.output), "metrics_port": -1}
    process = ServerProcess(served)
    yield process.addresses
    assert process.close() == 0


@pytest.mark.parametrize("modality", DATA)
@pytest.mark.parametrize("method", METHODS)
def test_it_trains_a_student_against_servers(
    method: str, modality: str, configure: Configure, addresses: dict[str, Address]
) -> None:
    asked = {
        "teacher__address": addresses[f"{modality} foundation"].name,
        "complementary": [{"address": addresses[f"{modality} complementary"].name}],
    }
    if method == "selection":
        selector = configure(modality, "selector", method, **asked, method__selection__learning__phase_steps=2)
        assert train_selector(selector, 1, progress=quiet()).episodes == 1
        asked["method__selection__selector"] = selector.output
    config = configure(modality, method, method, **asked)
    result = train(config, progress=quiet())
    assert result is not None
    assert (result.method, result.steps) == (method, STEPS)
    assert (result.teacher_rows > 0, result.bytes_received > 0) == (method != "task_only",) * 2
    before = build_student(config.student, load_data(config.data)).state_dict()
    after = load_student(config.output / "student").state_dict()
    moved = [name for name in before if not torch.equal(before[name], after[name])]
    assert len(moved) > len(before) / 2
