"""Replicas of a teacher under a real Ray die and are replaced while students train; every one ends as an unbroken run, to the bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.ray.namespace import alone

Models = Callable[[str], Path]


def test_a_replica_is_killed_in_mid_training(model_folder: Models, tmp_path: Path) -> None:
    alone("tests.ray.drill", model_folder("bert"), tmp_path, "short", folder=tmp_path, limit_s=200)


@pytest.mark.slow
def test_a_replica_is_killed_and_the_other_is_replaced(model_folder: Models, tmp_path: Path) -> None:
    alone("tests.ray.drill", model_folder("bert"), tmp_path, "long", folder=tmp_path, limit_s=290)
