"""GPUs of replicas under a real Ray that is told of three; no GPU is needed: Ray counts them and names them to each process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.ray.namespace import alone


@pytest.mark.slow
def test_each_replica_has_gpus_of_its_own_and_too_few_are_told(
    model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    models = model_folder("bert"), model_folder("llama")
    alone("tests.ray.placement", *models, tmp_path, folder=tmp_path, limit_s=290)
