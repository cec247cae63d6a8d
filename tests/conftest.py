"""Fixtures of all tests: one compute thread, no network, tiny models on disk, servers in other processes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

from teacher_server.models.split import FrozenTeacher


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Gives the folder of a tiny random model of a type, saved once a session; BERT has a tokenizer."""
    from tests.unit.teacher_server.tiny_models import tiny_model, tiny_tokenizer

    root = tmp_path_factory.mktemp("models")

    def folder(model_type: str) -> Path:
        path = root / model_type
        if not path.exists():
            tiny_model(model_type).save_pretrained(path)
            if model_type == "bert":
                tiny_tokenizer().save_pretrained(path)
        return path

    return folder


@pytest.fixture(scope="session")
def bert() -> FrozenTeacher:
    """A tiny frozen BERT of four layers, width 32, with a head and a tokenizer."""
    from tests.unit.teacher_server.tiny_models import tiny_model, tiny_tokenizer

    return FrozenTeacher(tiny_model("bert"), "tiny-bert", tokenizer=tiny_tokenizer())


@pytest.fixture(autouse=True)
def _same_random_numbers() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
