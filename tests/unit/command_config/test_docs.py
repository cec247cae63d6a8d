"""The tables of fields in the documentation are those of the code, and the examples in it can be used."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest
import yaml

from student_client.fleet.plan import plan
from student_client.fleet.settings import read_fleet
from teacher_server.config import ServerConfig
from teacher_server.live import LIVE_FIELDS
from tests.test_architecture import ROOT

MADE: dict[str, Any] = runpy.run_path(str(ROOT / "deploy" / "settings.py"))


@pytest.mark.parametrize("page", MADE["PAGES"], ids=lambda page: page.name)
def test_the_tables_are_complete(page: Path) -> None:
    text = page.read_text()
    assert "<!-- end of the fields -->" in text
    assert MADE["written"](text) == text, "make settings"


def test_live_fields_are_fields() -> None:
    assert set(ServerConfig.model_fields) >= LIVE_FIELDS


def test_the_example_is_a_fleet_and_the_page_shows_it() -> None:
    file = ROOT / "examples" / "fleet.yaml"
    students = plan(read_fleet(file, {}), {})
    assert [each.name for each in students] == ["labels-only", "listens", "talking-seed0", "talking-seed1"]
    assert all(each.config is not None for each in students), [each.error for each in students]
    shown = (ROOT / "docs" / "fleet.md").read_text().partition("```yaml\n")[2].partition("```")[0]
    assert yaml.safe_load(shown) == yaml.safe_load(file.read_text())
