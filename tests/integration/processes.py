"""Real server processes for tests, and what a test asks of them: address, scraped metrics, kill -9."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from prometheus_client.parser import text_string_to_metric_families

from tests.integration.gate import Gate

__all__ = ["ROOT", "Address", "ServerProcess"]

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Address:
    """Where one teacher serves, and the gate its model has, if any."""

    port: int
    metrics_port: int
    gate: Gate | None = None

    @property
    def name(self) -> str:
        return f"127.0.0.1:{self.port}"

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples that have these labels."""
        return sum(
            value
            for (sample, found), value in self.metrics().items()
            if sample == name and labels.items() <= set(found)
        )

    def metrics(self) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=10) as page:
            text = page.read().decode()
        samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
        return {(sample.name, tuple(sorted(sample.labels.items()))): sample.value for sample in samples}

    def raw(self, method: str, data: bytes, timeout: float = 20.0) -> bytes:
        """Sends handcrafted bytes over a channel of its own; raises grpc.RpcError."""
        with grpc.insecure_channel(self.name, options=[("grpc.max_send_message_length", -1)]) as channel:
            reply: bytes = channel.unary_unary(f"/teaching_protocol.v1.Teacher/{method}")(data, timeout=timeout)
        return reply


class ServerProcess:
    """One process with a teacher for each configuration; `addresses` blocks until they serve."""

    def __init__(self, configs: Mapping[str, Mapping[str, Any]]) -> None:
        self._configs = configs
        self._addresses: dict[str, Address] = {}
        command = [sys.executable, "-m", "tests.integration.serve_tiny", json.dumps(configs)]
        self.process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    @property
    def addresses(self) -> dict[str, Address]:
        if not self._addresses:
            assert self.process.stdout is not None
            for name, (port, metrics_port) in json.loads(self.process.stdout.readline()).items():
                gate = self._configs[name].get("gate")
                self._addresses[name] = Address(port, metrics_port, Gate(Path(gate)) if gate else None)
        return self._addresses

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()
        self.process.wait(20)

    def close(self) -> int:
        """Lets the process end by itself; gives its exit code."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        code = self.process.wait(40)
        self.process.stdout.close()
        return code
