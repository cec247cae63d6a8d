"""Metrics of real runs, scraped from their port and received by a gateway."""

from __future__ import annotations

import socket
import subprocess
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from student_client.config import TrainingConfig
from student_client.reporting.metrics import Facts, RunMetrics
from student_client.reporting.watching import watching
from student_client.training.runs import open_run, train
from teacher_server.local import local_teacher
from teacher_server.models.split import FrozenTeacher
from teaching_protocol.errors import PortInUse
from tests.parts import part
from tests.unit.student_client.run_setup import quiet, run_config

Samples = dict[str, float]


def read(text: str) -> Samples:
    """Samples by name and the one label they may have."""
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = {name: value for name, value in sample.labels.items() if name != "le"}
            found[":".join([sample.name, *labels.values()])] = sample.value
    return found


def port_of(sentences: list[str]) -> int:
    (said,) = [each for each in sentences if "metrics at" in each]
    return int(said.rpartition(":")[2].removesuffix("/metrics"))


def scrape(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as page:
        text: str = page.read().decode()
    return text


class Gateway(BaseHTTPRequestHandler):
    """Takes what is pushed, as a Pushgateway does."""

    pushed: list[tuple[str, str]]

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self.pushed.append((self.path, body))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Says nothing."""


@contextmanager
def gateway() -> Iterator[tuple[str, list[tuple[str, str]]]]:
    handler = type("OneGateway", (Gateway,), {"pushed": []})
    server = HTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}", handler.pushed  # type: ignore[attr-defined]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_a_run_tells_how_it_goes_while_it_goes(bert: FrozenTeacher, tmp_path: Path) -> None:
    config = run_config(tmp_path, method="talking", training__metrics_port=0)
    progress, said = quiet(), []
    progress.say = said.append  # type: ignore[method-assign]
    with open_run(config, teachers=[local_teacher(bert)], progress=progress) as trainer:
        assert trainer.run(12) is None
        text = scrape(port_of(said))
        found = read(text)
        assert found["student_position_steps"] == 12
        assert found["student_planned_steps"] == 20
        assert found["student_step_seconds_count"] == 12
        assert 0 < found["student_teacher_wait_seconds_total"] < found["student_step_seconds_sum"]
        assert found["student_teacher_compute_seconds_total"] > 0
        assert found["student_teacher_rows_total"] >= 12 * 8
        assert found["student_loss:total"] > 0
        assert found["student_loss:task"] > 0
        assert found["student_message_variance:message"] > 0
        assert {"student", "codec", "teacher_codec"} <= {
            name.partition(":")[2] for name in found if name.startswith("student_grad_norm")
        }
        assert 0 <= found["student_validation_score:accuracy"] <= 1
        assert found["student_recoveries_total"] == 0
        done = subprocess.run(
            [part("promtool"), "check", "metrics"], input=text, capture_output=True, text=True, timeout=60
        )
        assert (done.returncode, done.stdout + done.stderr) == (0, "")
    with pytest.raises(OSError, match="refused"):
        scrape(port_of(said))


def test_nothing_is_opened_unless_it_is_asked_for(bert: FrozenTeacher, tmp_path: Path) -> None:
    before = threading.active_count()
    progress, said = quiet(), []
    progress.say = said.append  # type: ignore[method-assign]
    with open_run(run_config(tmp_path), progress=progress) as trainer:
        assert trainer.watch.metrics is None
        assert not trainer.watch.tracing.is_on
        assert threading.active_count() == before
    assert not said


def test_a_run_is_the_same_watched_or_not(bert: FrozenTeacher, tmp_path: Path) -> None:
    results = [
        train(
            run_config(tmp_path, f"run-{port}", method="talking", training__metrics_port=port),
            teachers=[local_teacher(bert)],
            progress=quiet(),
        )
        for port in (-1, 0)
    ]
    assert results[0] is not None
    assert results[1] is not None
    assert results[0].test_loss == results[1].test_loss


def test_the_end_of_a_run_is_pushed(tmp_path: Path) -> None:
    with gateway() as (address, pushed):
        train(run_config(tmp_path, training__metrics_push=address), progress=quiet())
    path, body = pushed[-1]
    assert path == "/metrics/job/student-client/run/run"
    assert read(body)["student_position_steps"] == 20


def test_a_gateway_that_is_not_there_is_said_once_and_ends_nothing(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens
        progress, said = quiet(), []
        progress.say = said.append  # type: ignore[method-assign]
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        assert train(run_config(tmp_path, training__metrics_push=address), progress=progress) is not None
    (warning,) = [each for each in said if "warning" in each]
    assert warning.startswith(f"warning: metrics cannot be pushed to {address}")


def test_a_port_in_use_says_what_to_do() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        training = TrainingConfig.model_validate({"metrics_port": taken.getsockname()[1]})
        with (
            pytest.raises(PortInUse, match=r"choose another training\.metrics_port, 0 for a free one, or -1 for none"),
            watching(training, "run", "task_only", Facts, lambda sentence: None),
        ):
            pytest.fail("it was bound")


def test_what_a_record_does_not_have_stays_as_it_was() -> None:
    metrics = RunMetrics(Facts)
    metrics.record(
        {"loss": 2.0, "parts": {"task": 1.5}, "monitors": {"grad_norm": 3.0}, "validation": {"accuracy": 0.5}}
    )
    metrics.record({"loss": 1.0, "parts": {}, "monitors": {}})
    value = metrics.registry.get_sample_value
    assert value("student_loss", {"part": "total"}) == 1.0
    assert value("student_loss", {"part": "task"}) == 1.5
    assert value("student_grad_norm", {"module": "student"}) == 3.0
    assert value("student_validation_score", {"score": "accuracy"}) == 0.5
