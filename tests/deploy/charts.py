"""Renders the charts with a real helm."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import yaml

from tests.deploy.dockerfiles import ROOT
from tests.parts import part

__all__ = ["CHARTS", "ONE", "SECURE", "TEACHERS", "chart_values", "helm", "of_kind", "refusal", "rendered"]

CHARTS = ROOT / "deploy" / "helm"
SECURE: dict[str, Any] = {"tls": {"secretName": "teacher-tls"}, "auth": {"tokensSecretName": "teacher-tokens"}}
TEACHERS = ["t-0.t-pods.lab.svc:50051", "t-1.t-pods.lab.svc:50051", "t-2.t-pods.lab.svc:50051"]
ONE: dict[str, Any] = {"teachers": TEACHERS, "students": [{"name": "ann"}]}


def helm(*words: str, values: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    command = [part("helm"), *words, "--values", "-"]
    return subprocess.run(command, input=json.dumps(values), capture_output=True, text=True, timeout=60)


def rendered(chart: str, values: dict[str, Any]) -> list[dict[str, Any]]:
    """What helm would apply, in namespace `lab` by release `t`."""
    done = helm("template", "t", str(CHARTS / chart), "--namespace", "lab", values=values)
    assert done.returncode == 0, done.stderr
    return [each for each in yaml.safe_load_all(done.stdout) if each]


def refusal(chart: str, values: dict[str, Any]) -> str:
    """What helm says to values that it does not take."""
    done = helm("template", "t", str(CHARTS / chart), values=values)
    assert done.returncode != 0
    return done.stderr


def of_kind(found: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [each for each in found if each["kind"] == kind]


def chart_values(chart: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(Path(CHARTS, chart, "values.yaml").read_text())
    return loaded
