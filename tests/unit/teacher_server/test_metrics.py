from __future__ import annotations

import re
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from teacher_server.app import TeacherApp
from teacher_server.config import ServerConfig
from teacher_server.metrics.metrics import Metrics
from teacher_server.models.split import FrozenTeacher
from teaching_protocol.errors import NonFiniteError
from tests.calls import WIDTH, Caller, attempt, forward_request, in_s
from tests.parts import part
from tests.unit.teacher_server.desk import Desk


@pytest.fixture(scope="module")
def app(bert: FrozenTeacher) -> Iterator[TeacherApp]:
    with TeacherApp(ServerConfig(model="tiny", port=0, metrics_port=0, threads=1), bert) as found:
        yield found


def scraped(app: TeacherApp, accept: str = "text/plain") -> str:
    request = urllib.request.Request(f"http://127.0.0.1:{app.metrics_port}/metrics", headers={"Accept": accept})
    with urllib.request.urlopen(request, timeout=10) as page:
        text: str = page.read().decode()
    return text


def test_every_instrument_is_registered_under_a_name_of_its_own() -> None:
    metrics = Metrics()
    families = list(text_string_to_metric_families(generate_latest(metrics.registry).decode()))
    names = [family.name for family in families]
    assert len(set(names)) == len(names)
    assert all(re.match("(teacher|process)_", name) for name in names)
    assert all(family.documentation.endswith(".") for family in families)
    simple = [name for name in vars(metrics) if name not in ("registry", "students", "process")]
    own = [name for name in names if re.match("teacher_(?!student_).*(?<!_created)$", name)]
    assert len(own) == len(simple)


def test_two_servers_in_one_process_do_not_share_them() -> None:
    one, other = Metrics(), Metrics()
    one.session_steps.inc()
    assert other.registry.get_sample_value("teacher_session_steps_total") == 0


def test_every_instrument_is_touched_somewhere() -> None:
    package = Path(__file__).parents[3] / "teacher_server"
    code = "".join(path.read_text() for path in package.rglob("*.py") if path.name != "metrics.py")
    for name in vars(Metrics()):
        assert f"metrics.{name}" in code or name == "process", name


def test_promtool_finds_no_fault_with_what_a_server_says(app: TeacherApp) -> None:
    with Caller(f"127.0.0.1:{app.port}", "ann") as ann:
        ann.backward(ann.forward()[0])
        ann.step(1)
        text = scraped(app)
    done = subprocess.run(
        [part("promtool"), "check", "metrics"], input=text, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_open_metrics_are_told_to_who_asks_for_them(app: TeacherApp) -> None:
    assert scraped(app, "application/openmetrics-text; version=1.0.0").endswith("# EOF\n")
    assert "# EOF" not in scraped(app)


def test_limits_stand_beside_what_they_limit(app: TeacherApp) -> None:
    value = app.metrics.registry.get_sample_value
    with Caller(f"127.0.0.1:{app.port}", "ann") as ann:
        forward, _ = ann.forward()
        for name, limit in (
            ("teacher_in_flight", "teacher_permits"),
            ("teacher_sessions", "teacher_session_limit"),
            ("teacher_graph_cache_bytes", "teacher_graph_cache_limit_bytes"),
            ("teacher_knowledge_cache_bytes", "teacher_knowledge_cache_limit_bytes"),
            ("teacher_device_memory_bytes", "teacher_device_memory_limit_bytes"),
        ):
            assert 0 <= (value(name) or 0) < (value(limit) or 0), name
        held = {kind: value("teacher_session_bytes", {"kind": kind}) or 0 for kind in ("state", "inputs", "replies")}
        assert min(held.values()) > 0
        assert held["state"] < (value("teacher_session_state_limit_bytes") or 0)
        ann.backward(forward)
    assert value("teacher_session_bytes", {"kind": "state"}) == 0
    assert value("teacher_serving") == 1


def test_the_queue_and_who_waits_longest(bert: FrozenTeacher) -> None:
    desk = Desk(bert)
    try:
        with Caller(desk.actor, "a") as ann, Caller(desk.actor, "b") as bob:
            desk.shut()
            running = desk.scheduler.submit(desk.job(forward_request(ann.session)))
            assert desk.busy.wait(20)
            waiting = desk.job(forward_request(bob.session))
            desk.scheduler.submit(waiting)
            assert desk.scheduler.waiting(waiting.born + 7) == (1, pytest.approx(7))
            desk.door.set()
            for future in (running, waiting.future):
                future.result(20)
            assert desk.scheduler.waiting(waiting.born + 7) == (0, 0.0)
    finally:
        desk.close()


def test_the_health_of_training_is_seen(app: TeacherApp) -> None:
    """Message variance of sampled calls, the norm of codec gradients, and numbers that are none."""
    value = app.metrics.registry.get_sample_value
    with Caller(f"127.0.0.1:{app.port}", "eve") as eve:
        before = {
            each: value("teacher_message_variance_count", {"direction": each}) or 0 for each in ("received", "sent")
        }
        norms = value("teacher_codec_grad_norm_count") or 0
        for step in range(1, 18):
            eve.backward(eve.forward()[0])
            norm = eve.step(step).grad_norm
        for each, count in before.items():
            assert 1 <= (value("teacher_message_variance_count", {"direction": each}) or 0) - count <= 2
        assert (value("teacher_codec_grad_norm_count") or 0) - norms == 17
        assert norm > 0
        eve.step(18, grad_scale=0.0)
        assert (value("teacher_codec_grad_norm_count") or 0) - norms == 17, "a skipped step has no gradient"
        bad = {"message": torch.full((1, 1, WIDTH), float("nan"))}
        assert isinstance(attempt(lambda: eve.forward(inputs=bad)), NonFiniteError)
        assert value("teacher_non_finite_total", {"method": "Forward"}) == 1


def test_constant_messages_are_seen_to_have_no_variance(bert: FrozenTeacher) -> None:
    desk = Desk(bert)
    try:
        with Caller(desk.actor, "a") as ann:
            inputs = {"message": torch.ones(2, 3, WIDTH)}
            ann.teacher.forward(forward_request(ann.session, inputs=inputs), in_s(20))
        assert desk.count("teacher_message_variance_bucket", direction="received", le="0.001") == 1
        assert desk.count("teacher_message_variance_sum", direction="received") == 0
    finally:
        desk.close()
