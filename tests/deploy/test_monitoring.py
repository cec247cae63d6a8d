"""ServiceMonitor and PrometheusRule, whose schemas no package brings: their fields by hand, their rules by promtool."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.charts import CHARTS, of_kind, rendered
from tests.deploy.dockerfiles import ROOT
from tests.deploy.test_helm import VALUES
from tests.parts import part

# monitoring.coreos.com/v1, the fields that we use: a type, a mapping of fields, or a list of one kind of thing
SECRET = {"name": str, "key": str}
MONITOR: dict[str, Any] = {
    "jobLabel": str,
    "selector": {"matchLabels": dict},
    "endpoints": [
        {
            "port": str,
            "interval": "duration",
            "scheme": {"http", "https"},
            "tlsConfig": {"serverName": str, "ca": {"secret": SECRET}},
            "authorization": {"type": str, "credentials": SECRET},
        }
    ],
}
RULE: dict[str, Any] = {
    "groups": [
        {
            "name": str,
            "interval": "duration",
            "rules": [
                {"alert": str, "record": str, "expr": str, "for": "duration", "labels": dict, "annotations": dict}
            ],
        }
    ]
}


def check(value: Any, schema: Any, where: str = "spec") -> None:
    """Fails on a field that is not known, or of another type."""
    if isinstance(schema, dict):
        assert isinstance(value, dict), where
        assert value.keys() <= schema.keys(), f"{where}: {value.keys() - schema.keys()}"
        for name, each in value.items():
            check(each, schema[name], f"{where}.{name}")
    elif isinstance(schema, list):
        assert isinstance(value, list), where
        assert value, where
        for place, each in enumerate(value):
            check(each, schema[0], f"{where}[{place}]")
    elif schema == "duration":
        assert re.fullmatch(r"([0-9]+(ms|s|m|h|d|w|y))+", value), where
    elif isinstance(schema, set):
        assert value in schema, where
    else:
        assert isinstance(value, schema), f"{where}: {value!r}"


@pytest.fixture(scope="module")
def found() -> list[dict[str, Any]]:
    return rendered(*VALUES["all of it"])


def test_the_service_monitor(found: list[dict[str, Any]]) -> None:
    monitor = of_kind(found, "ServiceMonitor")[0]
    assert monitor["apiVersion"] == "monitoring.coreos.com/v1"
    check(monitor["spec"], MONITOR)
    scraped = [
        service
        for service in of_kind(found, "Service")
        if monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    ]
    assert len(scraped) == 1, "each pod is scraped once"
    assert monitor["spec"]["endpoints"][0]["port"] in {port["name"] for port in scraped[0]["spec"]["ports"]}
    assert scraped[0]["metadata"]["labels"][monitor["spec"]["jobLabel"]] == "teacher", "as the rules ask"


def test_the_rules(found: list[dict[str, Any]], tmp_path: Path) -> None:
    rule = of_kind(found, "PrometheusRule")[0]
    assert rule["apiVersion"] == "monitoring.coreos.com/v1"
    assert rule["metadata"]["labels"]["release"] == "prometheus"
    check(rule["spec"], RULE)
    (tmp_path / "rules.yml").write_text(yaml.safe_dump(rule["spec"]))
    done = subprocess.run([part("promtool"), "check", "rules", tmp_path / "rules.yml"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert rule["spec"] == yaml.safe_load((ROOT / "deploy/prometheus/rules.yml").read_text())


def test_the_charts_copy_of_the_rules_is_equal() -> None:
    """helm reads no file outside of its chart; after a change: cp deploy/prometheus/rules.yml deploy/helm/teacher/files/"""
    assert (CHARTS / "teacher/files/rules.yml").read_text() == (ROOT / "deploy/prometheus/rules.yml").read_text()


@pytest.mark.parametrize(
    "fault",
    [
        {"endpoint": []},
        {"endpoints": [{"port": 9464}]},
        {"endpoints": [{"port": "metrics", "interval": "15"}]},
        {"endpoints": [{"port": "metrics", "tlsConfig": {"caFile": "x"}}]},
    ],
)
def test_the_check_itself_finds_a_fault(fault: dict[str, Any]) -> None:
    with pytest.raises(AssertionError):
        check(fault, MONITOR)
