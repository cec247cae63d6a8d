"""A real Prometheus for tests: its own process on a free port of the loopback, with targets that may come later."""

from __future__ import annotations

import json
import math
import re
import socket
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.integration.gate import poll
from tests.parts import part

__all__ = ["FASTER", "RULES", "Prometheus", "quickened"]

ROOT = Path(__file__).parents[2]
RULES = ROOT / "deploy" / "prometheus" / "rules.yml"
FASTER = 120

_THRESHOLDS = {  # what is compared with seconds
    "teacher_oldest_wait_seconds > 60": "teacher_oldest_wait_seconds > {:g}",
    "p90_rate5m > 5": "p90_rate5m > {:g}",
    "student_last_step_timestamp_seconds > 900": "student_last_step_timestamp_seconds > {:g}",
}


def quickened(rules: str) -> str:
    """The same rules where time runs 120 times as fast: each window, each `for`, each threshold in seconds.

    A minute is half a second; nothing else changes.
    """

    def quick(minutes: re.Match[str]) -> str:
        return f"{minutes[1]}{int(minutes[2]) * 60_000 // FASTER}ms{minutes[3]}"

    rules = re.sub(r"(\[)(\d+)m(\])", quick, rules)
    rules = re.sub(r"(\bfor: )(\d+)m(\n)", quick, rules)
    for threshold, quicker in _THRESHOLDS.items():
        assert rules.count(threshold) == 1, threshold
        rules = rules.replace(threshold, quicker.format(float(threshold.rpartition(" ")[2]) / FASTER))
    return rules


class Prometheus:
    """Scrapes twice a second. Use as a context manager; it is ready inside.

    Args:
        folder: for its configuration and data.
        rules: as text.
    """

    def __init__(self, folder: Path, rules: str) -> None:
        self._folder = folder
        self._program = part("prometheus")
        (folder / "rules.yml").write_text(rules)
        self._targets: dict[str, list[str]] = {"teacher": [], "student": []}
        jobs = [{"job_name": job, "file_sd_configs": [{"files": [f"{folder}/{job}.json"]}]} for job in self._targets]
        times = {"scrape_interval": "500ms", "scrape_timeout": "500ms", "evaluation_interval": "250ms"}
        config = {"global": times, "rule_files": [str(folder / "rules.yml")], "scrape_configs": jobs}
        (folder / "prometheus.yml").write_text(json.dumps(config))
        self._write_targets()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]

    def add(self, job: str, port: int) -> str:
        """One more target; gives its instance."""
        instance = f"127.0.0.1:{port}"
        self._targets[job].append(instance)
        self._write_targets()
        return instance

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """What an expression gives now: labels and values."""
        words = urllib.parse.urlencode({"query": expression})
        return [(each["metric"], float(each["value"][1])) for each in self._get(f"query?{words}")["result"]]

    def value(self, expression: str) -> float:
        """The one value an expression gives now; NaN if there is none."""
        found = self.query(expression)
        return found[0][1] if len(found) == 1 else math.nan

    def values(self, expression: str) -> list[float]:
        """The values alone."""
        return [value for _, value in self.query(expression)]

    def fired(self, alert: str) -> set[str]:
        """The instances an alert has fired for since the start."""
        found = self.query(f'count_over_time(ALERTS{{alertname="{alert}",alertstate="firing"}}[10m])')
        return {labels["instance"] for labels, _ in found}

    def firing(self, alert: str) -> set[str]:
        """The instances it fires for now."""
        return {labels["instance"] for labels, _ in self.query(f'ALERTS{{alertname="{alert}",alertstate="firing"}}')}

    def __enter__(self) -> Prometheus:
        flags = {
            "config.file": self._folder / "prometheus.yml",
            "storage.tsdb.path": self._folder / "data",
            "web.listen-address": f"127.0.0.1:{self.port}",
            "log.level": "warn",
            "enable-feature": "exemplar-storage",
        }
        self._log = (self._folder / "prometheus.log").open("w")
        words = [f"--{name}={value}" for name, value in flags.items()]
        self._process = subprocess.Popen([self._program, *words], stdout=self._log, stderr=subprocess.STDOUT)
        poll(self._is_ready, "Prometheus is ready", 30)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait(20)
        self._log.close()

    def _is_ready(self) -> bool:
        assert self._process.poll() is None, (self._folder / "prometheus.log").read_text()
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/-/ready", timeout=5) as page:
                return bool(page.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def _get(self, what: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/api/v1/{what}", timeout=10) as page:
            return json.loads(page.read())["data"]

    def _write_targets(self) -> None:
        for job, targets in self._targets.items():
            written = self._folder / f"{job}.new"
            groups: list[Mapping[str, Any]] = [{"targets": targets}]
            written.write_text(json.dumps(groups))
            written.replace(self._folder / f"{job}.json")
