"""Dashboard, rules, docs and instruments read together: nobody names what is not there, and nothing is there that is not told."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import yaml
from prometheus_client.core import Metric

from student_client.reporting.metrics import Facts, RunMetrics
from teacher_server.fleet.metrics import FleetMetrics
from teacher_server.metrics.metrics import Metrics
from tests.test_architecture import ROOT

RULES = [
    rule
    for group in yaml.safe_load((ROOT / "deploy/prometheus/rules.yml").read_text())["groups"]
    for rule in group["rules"]
]
PANELS = json.loads((ROOT / "deploy/grafana/dashboards/talking-models.json").read_text())["panels"]
PAGE = (ROOT / "docs" / "metrics.md").read_text()
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()
OWN = re.compile(r"(?<![\w:])(?:teacher|student)_\w+(?!:)\b")
SUFFIXES = {"counter": ["_total"], "info": ["_info"], "histogram": ["_bucket", "_sum", "_count"], "gauge": [""]}

SERVER, RUN, FLEET = Metrics(), RunMetrics(Facts), FleetMetrics()
FAMILIES = {
    family.name: family
    for registry in (SERVER.registry, RUN.registry, FLEET.registry)
    for family in registry.collect()
    if not family.name.startswith("process_")
}
SAMPLES = {family.name + suffix for family in FAMILIES.values() for suffix in SUFFIXES[family.type]}


def shown(family: Metric) -> str:
    """The name in the docs: with the suffix that a scraper sees, where there is only one."""
    (first, *others) = SUFFIXES[family.type]
    return family.name if others else family.name + first


def labels_of(family: Metric) -> list[str]:
    for instrument in (*vars(SERVER).values(), *vars(RUN).values()):
        if getattr(instrument, "_name", None) == family.name and family.type != "info":
            return list(instrument._labelnames)
    return list(getattr(family, "_labelnames", None) or ())


def expressions() -> list[str]:
    return [rule["expr"] for rule in RULES] + [
        target["expr"] for panel in PANELS for target in panel.get("targets", [])
    ]


@pytest.mark.parametrize("expression", expressions())
def test_only_instruments_that_exist_are_named(expression: str) -> None:
    recorded = {rule["record"] for rule in RULES if "record" in rule}
    assert set(re.findall(r"(?:teacher|student):\w+:\w+", expression)) <= recorded
    known = SAMPLES | {"teacher_codec"}
    asked = re.sub(r'"[^"]*"', '""', re.sub(r"(?:teacher|student):\w+:\w+", "", expression))
    assert set(OWN.findall(asked)) <= known


def test_an_invented_name_would_be_found() -> None:
    assert OWN.findall('rate(teacher_invented_total{student="x"}[5m]) / student_step_seconds_sum') == [
        "teacher_invented_total",
        "student_step_seconds_sum",
    ]


@pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: family.name)
def test_every_instrument_is_told_with_its_type_labels_and_meaning(family: Metric) -> None:
    (row,) = re.findall(rf"^\| `{shown(family)}` \| (.*) \|$", PAGE, re.MULTILINE)
    kind, labels, meaning, question = (each.strip() for each in row.split("|"))
    assert (kind, meaning) == (family.type, family.documentation)
    if family.type != "info":
        assert [each.strip() for each in labels.split(",") if each] == labels_of(family)
    assert question


def test_the_page_tells_of_nothing_else() -> None:
    assert set(re.findall(r"^\| `((?:teacher|student)_\w+)` \|", PAGE, re.MULTILINE)) == set(
        map(shown, FAMILIES.values())
    )


@pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: family.name)
def test_every_instrument_is_on_the_dashboard(family: Metric) -> None:
    text = json.dumps(PANELS)
    assert any(re.search(rf"\b{family.name}{suffix}\b", text) for suffix in SUFFIXES[family.type])


ALERTS = [rule for rule in RULES if "alert" in rule]


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_an_alert_says_how_bad_it_is_and_where_its_page_is(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in ("page", "warn")
    assert set(rule["annotations"]) == {"summary", "description", "runbook"}
    assert rule["annotations"]["runbook"] == "docs/operations.md#alerts"
    (row,) = re.findall(rf"^\| `{rule['alert']}` \|.*\|$", OPERATIONS, re.MULTILINE)
    assert f"| {rule['labels']['severity']} |" in row
    assert len(row.split("|")) == 6, "name, severity, what it means, what to do"


def test_the_alerts_have_their_heading_and_no_row_too_many() -> None:
    section = OPERATIONS.partition("\n## Alerts\n")[2].partition("\n## ")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)) == {rule["alert"] for rule in ALERTS}


def test_panels_have_places_of_their_own() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in PANELS:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken, panel["title"]
        taken |= cells
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)
