"""Students on a real Ray: a fleet file's, one of whom is killed, and the trials of a search."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.ray.namespace import alone


@pytest.mark.slow
@pytest.mark.parametrize("what", ["fleet", "search"])
def test_students_on_ray(what: str, tmp_path: Path) -> None:
    alone("tests.ray.pupils", what, tmp_path, folder=tmp_path, limit_s=290)
