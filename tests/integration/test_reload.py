"""SIGHUP to a real server under load: what can change does, the rest is named, a bad file changes nothing, no call fails."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from teaching_protocol.errors import QuotaExceeded
from tests.calls import Caller
from tests.integration.gate import poll
from tests.integration.processes import ROOT, Address


@dataclass
class Served:
    """A `teacher-server serve --config FILE` whose file can be written anew."""

    process: subprocess.Popen[str]
    address: Address
    config: Path
    log: Path
    values: dict[str, Any] = field(default_factory=dict)

    def reload(self, result: str, **changes: Any) -> str:
        """Writes the file, sends SIGHUP, waits for the outcome; gives what the log said meanwhile."""
        self.values |= changes
        text = json.dumps(self.values)
        before, said = self.address.metric("teacher_config_reloads_total", result=result), len(self.log.read_text())
        self.config.write_text(text)
        self.process.send_signal(signal.SIGHUP)
        poll(
            lambda: self.address.metric("teacher_config_reloads_total", result=result) > before,
            f"the reload is {result}",
        )
        return self.log.read_text()[said:]


@pytest.fixture(scope="module")
def served(model_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    tmp_path = tmp_path_factory.mktemp("reload")
    config, log = tmp_path / "teacher.yaml", tmp_path / "teacher.log"
    values = {"model": str(model_folder("bert")), "port": 0, "metrics_port": 0, "threads": 1, "permits": 64}
    config.write_text(json.dumps(values))
    words = [sys.executable, "-m", "teacher_server", "serve", "--config", str(config), "--set", "linger_s=0.01"]
    environ = os.environ | {"TEACHER_SERVER_DRAIN_S": "11"}
    with (
        log.open("w") as errors,
        subprocess.Popen(words, cwd=ROOT, env=environ, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        try:
            assert process.stdout is not None
            line = process.stdout.readline().split()
            ports = [int(line[place].rpartition(":")[2]) for place in (1, 3)]
            yield Served(process, Address(*ports), config, log, values)
        finally:
            process.kill()


class Trains(threading.Thread):
    """A student that makes steps until it is told to stop."""

    def __init__(self, address: str) -> None:
        super().__init__()
        self.address, self.steps, self.error = address, 0, None
        self.stop = threading.Event()

    def run(self) -> None:
        try:
            with Caller(self.address, "ann") as ann:
                while not self.stop.is_set():
                    ann.backward(ann.forward()[0])
                    self.steps += 1
                    ann.step(self.steps)
        except Exception as error:
            self.error = error

    def makes(self, more: int) -> None:
        target = self.steps + more
        poll(lambda: self.steps >= target or self.error is not None, f"{more} more steps", 60)
        assert self.error is None


def test_a_running_server_takes_over_what_it_can_and_no_call_fails(served: Served) -> None:
    ann = Trains(served.address.name)
    ann.start()
    try:
        ann.makes(3)
        with Caller(served.address.name, "bob-1"), Caller(served.address.name, "bob-2"):
            pass
        began = time.time()
        said = served.reload(
            "ok", quotas=[{"students": "bob-*", "sessions": 1}], permits=32, linger_s=0.2, drain_s=3, port=1, max_rows=9
        )
        ann.makes(3)
        assert 'quotas is [{"students": "bob-*", "sessions": 1}] now, it was []' in said
        assert "permits is 32 now, it was 64" in said
        assert "linger_s" not in said, "the flag of the start stays on top"
        assert "drain_s" not in said, "the environment of the start stays above the file"
        for name in ("port", "max_rows"):
            assert f"{name} has changed and stays as it was until a restart" in said
        assert "2 fields taken over, 2 need a restart" in said
        assert served.address.metric("teacher_config_last_reload_success_timestamp_seconds") >= began - 1
        with (
            Caller(served.address.name, "bob-1"),
            pytest.raises(QuotaExceeded, match=r"students 'bob-\*' have 1 sessions, the quota is 1"),
        ):
            Caller(served.address.name, "bob-2").__enter__()

        refused = served.reload("failed", permits=0, quotas=[])
        assert "everything stays as it was: configuration: permits: received 0" in refused
        assert f"(from the file {served.config})" in refused
        assert served.address.metric("teacher_config_last_reload_successful") == 0
        served.config.unlink()
        served.process.send_signal(signal.SIGHUP)
        poll(lambda: served.address.metric("teacher_config_reloads_total", result="failed") == 2, "a file that is gone")
        ann.makes(3)
        with Caller(served.address.name, "bob-1"), pytest.raises(QuotaExceeded):
            Caller(served.address.name, "bob-2").__enter__()

        said = served.reload("ok", permits=10**6, log_level="debug", quotas=[{"students": "ann", "tokens_per_s": 1e9}])
        assert "permits has changed and stays as it was until a restart: there are threads for 320" in said
        ann.makes(3)
        assert served.address.metric("teacher_config_last_reload_successful") == 1
        assert "Forward: done" in served.log.read_text()
    finally:
        ann.stop.set()
        ann.join(30)
    assert ann.error is None
    assert served.address.metric("teacher_requests_total", method="Forward") == ann.steps
    for method in ("Forward", "Backward", "Step"):
        assert served.address.metric("teacher_requests_total", method=method, code="OK") == ann.steps


def test_tokens_a_second_change_for_a_session_that_lives(served: Served) -> None:
    """The bucket of a living session gets the new rate: one that ran dry under a low one is let in under a high one."""
    served.reload("ok", quotas=[{"students": "*", "tokens_per_s": 0.001}])
    with Caller(served.address.name, "ann") as ann:
        ann.forward()  # into debt
        with pytest.raises(QuotaExceeded, match=r"0.001 tokens a second"):
            ann.forward()
        served.reload("ok", quotas=[{"students": "*", "tokens_per_s": 1e9}])
        poll(lambda: _goes(ann), "the new rate holds")
        served.reload("ok", quotas=[])
        for _ in range(5):
            ann.forward()


def _goes(caller: Caller) -> bool:
    try:
        caller.forward()
    except QuotaExceeded:
        return False
    return True
