"""Students on a real Ray: a fleet file's, one of whom is killed, and the trials of a search."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.ray.namespace import alone


@pytest.mark.slow
def test_a_fleet_of_students_and_a_search(tmp_path: Path) -> None:
    alone("tests.ray.pupils", tmp_path, folder=tmp_path, limit_s=280)
