"""A real Prometheus scrapes real teachers and students: every panel of the dashboard has data, and every alert fires for its cause.

Time runs 90 times as fast in the rules (`quickened`). The causes are real but for these: a device that is nearly full is one whose limit
was lowered; a student that has collapsed, or lost its teacher thrice, is its real instruments told so by a record. That a
teacher restarts again and again is shown by promtool alone (deploy/prometheus/rules_test.yml), as all alerts are, too.
"""

from __future__ import annotations

import json
import math
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from student_client.config import TrainingConfig
from student_client.reporting.metrics import Facts
from student_client.reporting.watching import watching
from teacher_server.config import effective_config
from teacher_server.fleet.metrics import FleetFacts, FleetMetrics, serving_metrics
from teaching_protocol.errors import LeaseExpired
from tests.calls import WIDTH, Caller, attempt, forward_request, in_s
from tests.integration import gate
from tests.integration.processes import ServerProcess
from tests.integration.prometheus import FASTER, RULES, Prometheus, quickened
from tests.integration.school import LONGEST_S, School, again_and_again, student_process
from tests.parts import part

DASHBOARD = RULES.parents[1] / "grafana" / "dashboards" / "talking-models.json"
PANELS = [panel for panel in json.loads(DASHBOARD.read_text())["panels"] if panel["type"] != "row"]
RULE_LIST = [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]
ALERTS = [rule["alert"] for rule in RULE_LIST if "alert" in rule]
BY_PROMTOOL_ALONE = {"TeacherRestartsAgainAndAgain"}

poll = partial(gate.poll, limit_s=90.0)  # a busy machine scrapes slowly


@dataclass
class Town:
    """What Prometheus watches, and who fires which alert: instances by the alert's name."""

    prometheus: Prometheus
    main: ServerProcess
    slow: School
    causes: dict[str, str]


@pytest.fixture(scope="module")
def town(model_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Town]:
    """Begins every cause at once and lets them last."""
    part("prometheus")
    folder = tmp_path_factory.mktemp("town")
    with ExitStack() as stack:
        main = ServerProcess({"main": {"model": str(model_folder("bert")), "threads": 1}})
        stack.callback(_end, main)
        prometheus = stack.enter_context(Prometheus(folder, quickened(RULES.read_text())))
        slow = _slow(stack, prometheus, folder)
        causes = {"StudentWaitsForTeacher": slow[1], "StudentMakesNoProgress": slow[1], "TeacherStuck": slow[2]}
        causes |= _stays_in_between(stack, prometheus)
        causes |= _crowded(stack, prometheus)
        causes |= _unfair(stack, prometheus)
        causes |= _broken(stack, prometheus)
        causes |= _small(stack, prometheus)
        causes |= _told(stack, prometheus)
        causes |= _short(stack, prometheus)
        causes["TeacherDown"] = prometheus.add("teacher", main.addresses["main"].metrics_port)
        _busy(stack, main.addresses["main"].name)
        yield Town(prometheus, main, slow[0], causes)


def _end(server: ServerProcess) -> None:
    server.kill()
    for pipe in (server.process.stdin, server.process.stdout):
        assert pipe is not None
        pipe.close()


def _slow(stack: ExitStack, prometheus: Prometheus, folder: Path) -> tuple[School, str, str]:
    """A real student of a slow teacher."""
    school = School()
    stack.enter_context(school.app)
    stack.callback(school.door.set)
    school.slow_s = 0.4
    student = stack.enter_context(student_process(folder, school.address))
    return school, prometheus.add("student", student), prometheus.add("teacher", school.app.metrics_port)


def _stays_in_between(stack: ExitStack, prometheus: Prometheus) -> dict[str, str]:
    """A teacher that never gets warm, and one that drains while a student does not leave."""
    cold = School()
    cold.door.clear()
    thread = threading.Thread(target=cold.app.start)
    thread.start()
    poll(lambda: cold.app.metrics_port, "its metrics are served before it is warm")
    stack.callback(lambda: (cold.door.set(), thread.join(), cold.app.close()))
    draining = School(handoff_s=LONGEST_S)
    draining.app.start()
    student = Caller(draining.address, "ann").__enter__()
    closing = threading.Thread(target=draining.app.close)
    closing.start()
    stack.callback(lambda: (attempt(student.__exit__), closing.join()))
    return {
        "TeacherNotServing": prometheus.add("teacher", cold.app.metrics_port),
        "TeacherDrainsForLong": prometheus.add("teacher", draining.app.metrics_port),
    }


def _crowded(stack: ExitStack, prometheus: Prometheus) -> dict[str, str]:
    """Two permits for three callers whose lengths share no batch: one of two waits for the other."""
    school = School(permits=2)
    stack.enter_context(school.app)
    school.slow_s = 0.15
    for name, tokens in (("ann", 3), ("bob", 12), ("eve", 20)):
        _calls(stack, school, name, tokens)
    return dict.fromkeys(("TeacherOverloaded", "TeacherQueueSlow"), prometheus.add("teacher", school.app.metrics_port))


def _unfair(stack: ExitStack, prometheus: Prometheus) -> dict[str, str]:
    """A student of great weight that always has a call waiting, and one of hardly any."""
    quotas = [{"students": "great", "weight": 1000.0}, {"students": "*", "weight": 0.001}]
    school = School(quotas=quotas, linger=False)
    stack.enter_context(school.app)
    school.slow_s = 0.05
    _calls(stack, school, "small", 20)  # of another length: they share no batch
    for _ in range(3):
        _calls(stack, school, "great", 3)
    return {"TeacherStudentStarves": prometheus.add("teacher", school.app.metrics_port)}


def _calls(stack: ExitStack, school: School, name: str, tokens: int) -> None:
    """A thread that calls for a student again and again; its session is opened by the first of its threads."""
    student = Caller(school.address, name)
    live = [each for each in school.app.actor.sessions.live() if each.student == name]
    if live:
        student.session = live[0].ref
    else:
        student.__enter__()
    stack.callback(student.teacher.close)
    inputs = {"message": torch.ones(2, tokens, WIDTH)}
    stack.enter_context(
        again_and_again(lambda: student.teacher.forward(forward_request(student.session, inputs=inputs), in_s(3)))
    )


def _broken(stack: ExitStack, prometheus: Prometheus) -> dict[str, str]:
    """A model with a bug; a student that goes without leaving; a configuration that cannot be read."""
    school = School(lease_s=1.0, refused_strikes=10_000)
    stack.enter_context(school.app)
    instance = prometheus.add("teacher", school.app.metrics_port)
    poll(lambda: prometheus.query(f'teacher_serving{{instance="{instance}"}}'), "it is scraped before anything happens")
    school.app.reloading(lambda: effective_config(None, {"TEACHER_SERVER_PERMITS": "none"}, {}).config)
    school.app.reload()
    school.broken = True
    gone, ann = Caller(school.address, "gone").__enter__(), Caller(school.address, "ann").__enter__()
    stack.callback(gone.teacher.close)
    stack.callback(ann.teacher.close)

    def fail() -> None:
        try:
            ann.forward()
        except LeaseExpired:  # this process was held up for longer than the lease
            ann.__enter__()

    stack.enter_context(again_and_again(fail, 0.2))
    names = ("InternalErrors", "Quarantine", "SessionsLost", "ConfigNotTaken")
    return dict.fromkeys((f"Teacher{name}" for name in names), instance)


def _small(stack: ExitStack, prometheus: Prometheus) -> dict[str, str]:
    """Room for one session and no graph, and on its device for hardly more than there is; its student sends NaN, too."""
    probe = School()
    with probe.app, Caller(probe.address, "ann"):
        size = probe.app.actor.sessions.live()[0].size_bytes
    school = School(max_sessions=1, state_bytes=int(size * 1.05), graph_cache_bytes=0)
    stack.enter_context(school.app)
    school.app.metrics.device_limit.set(
        1.02 * (school.app.metrics.registry.get_sample_value("teacher_device_memory_bytes") or 0)
    )
    ann = Caller(school.address, "ann").__enter__()
    stack.callback(ann.teacher.close)
    bad = {"message": torch.full((1, 1, WIDTH), float("nan"))}

    def work() -> None:
        ann.backward(ann.forward()[0])
        attempt(lambda: ann.forward(inputs=bad))

    stack.enter_context(again_and_again(work, 0.1))
    names = ("SessionsNearLimit", "StateNearLimit", "DeviceMemoryHigh", "Recomputes", "NonFinite")
    return dict.fromkeys((f"Teacher{name}" for name in names), prometheus.add("teacher", school.app.metrics_port))


def _told(stack: ExitStack, prometheus: Prometheus) -> dict[str, str]:
    """A student whose messages are constant, and whose teacher is lost again and again, as its records say."""
    lost: list[int] = []
    said: list[str] = []
    training = TrainingConfig.model_validate({"metrics_port": 0})
    watch = stack.enter_context(
        watching(
            training, "collapsed", "talking", lambda: Facts(step=5, planned_steps=5, recoveries=len(lost)), said.append
        )
    )
    watch.record({"loss": 1.0, "monitors": {"message_variance": 0.003}})
    instance = prometheus.add("student", int(said[0].rpartition(":")[2].partition("/")[0]))
    stack.enter_context(again_and_again(lambda: lost.append(1), 1.0))
    return {"StudentCollapsed": instance, "StudentLosesTeacher": instance}


def _short(stack: ExitStack, prometheus: Prometheus) -> dict[str, str]:
    """A fleet of two whose cluster has room for one."""
    facts = FleetFacts({"wanted": 2, "serving": 1, "waiting": 1}, losses=0, given_up=0)
    address = stack.enter_context(serving_metrics(FleetMetrics(lambda: facts), "127.0.0.1", 0))
    return {"TeacherFleetShort": prometheus.add("teacher", int(address.rpartition(":")[2]))}


def _busy(stack: ExitStack, address: str) -> None:
    """Two students of the main teacher that train; they have what the teacher knows as int8, and one makes mistakes."""
    for name in ("ann", "bob"):
        student = Caller(address, name).__enter__()
        stack.callback(student.teacher.close)
        step = iter(range(1, 1_000_000))

        def work(student: Caller = student, step: Iterator[int] = step, name: str = name) -> None:
            ids = {
                "input_ids": torch.tensor([[5, 6, 7], [6, 5, 7]]),
                "attention_mask": torch.ones(2, 3, dtype=torch.long),
            }
            student.forward(
                inputs=ids, outputs=("hidden.2",), backward_follows=False, grad_inputs=(), compression="int8"
            )
            student.backward(student.forward()[0])
            student.step(next(step))
            if name == "ann":
                attempt(lambda: student.forward(outputs=("none-such",)))

        stack.enter_context(again_and_again(work, 0.1))


def expressions(panel: dict[str, Any]) -> list[str]:
    found = [target["expr"] for target in panel["targets"]]
    for variable, value in {"$__rate_interval": "6s", "$teacher": ".*", "$student": ".*"}.items():
        found = [each.replace(variable, value) for each in found]
    assert not any("$" in each for each in found), "a variable that the test does not know"
    return found


def check_targets(town: Town) -> None:
    up = 'count(max_over_time(up{job="%s"}[1m]) == 1)'
    poll(lambda: town.prometheus.value(up % "student") == 2, "both students are scraped")
    poll(lambda: town.prometheus.value(up % "teacher") == 9, "all eight teachers and the fleet are scraped")
    poll(lambda: town.prometheus.value("sum(student_step_seconds_count)") > 3, "the student trains")
    poll(lambda: town.prometheus.value('max(teacher_student_steps_total{student="bob"})') > 3, "who uses it, by name")


def check_panels(town: Town) -> None:
    """Every query of every panel gives a number."""
    for panel in PANELS:
        for expression in expressions(panel):
            poll(
                lambda expression=expression: any(map(math.isfinite, town.prometheus.values(expression))),
                f"{panel['title']}: {expression} gives a number",
            )


def check_records(town: Town) -> None:
    names = [rule["record"] for rule in RULE_LIST if "record" in rule]
    assert len(names) >= 6
    for name in names:
        poll(lambda name=name: any(map(math.isfinite, town.prometheus.values(name))), f"{name} is recorded")
    main = f'{{instance="{town.causes["TeacherDown"]}",student=~"ann|bob"}}'
    share = f"sum(teacher:student_compute:share_rate5m{main})"
    poll(
        lambda: town.prometheus.value(share) == pytest.approx(1, abs=0.01), "the two share its device, and nobody else"
    )


def check_fired(town: Town, *alerts: str) -> None:
    for alert in alerts:
        poll(lambda alert=alert: town.causes[alert] in town.prometheus.fired(alert), f"{alert} fires")


def check_fires(town: Town, cause: Callable[[], None], *alerts: str) -> None:
    """They do not fire before their cause, and they do after it."""
    for alert in alerts:
        poll(lambda alert=alert: town.causes[alert] not in town.prometheus.firing(alert), f"{alert} is quiet")
    cause()
    for alert in alerts:
        poll(lambda alert=alert: town.causes[alert] in town.prometheus.firing(alert), f"{alert} fires")


def test_what_prometheus_sees(town: Town) -> None:
    """One test, as its town takes long to build: panels, records, then alerts, those with causes of their own at the end."""
    check_targets(town)
    check_panels(town)
    check_records(town)
    last = {"TeacherStuck", "StudentMakesNoProgress", "TeacherDown"}
    check_fired(town, *(alert for alert in ALERTS if alert not in last | BY_PROMTOOL_ALONE))
    check_fires(town, town.slow.door.clear, "TeacherStuck", "StudentMakesNoProgress")
    town.slow.door.set()
    main = town.causes["TeacherDown"]
    assert not {alert for alert in ALERTS if main in town.prometheus.fired(alert)} - {"TeacherDown"}, "it fared well"
    check_fires(town, town.main.kill, "TeacherDown")
    assert town.causes.keys() | BY_PROMTOOL_ALONE == set(ALERTS), "every alert was shown to fire"


@pytest.mark.parametrize(
    "words",
    [
        ["check", "config", "deploy/prometheus/prometheus.yml"],
        ["check", "rules", "deploy/prometheus/rules.yml"],
        ["test", "rules", "deploy/prometheus/rules_test.yml"],
    ],
    ids=lambda words: "_".join(words[:2]),
)
def test_promtool_agrees(words: list[str]) -> None:
    done = subprocess.run([part("promtool"), *words], cwd=RULES.parents[2], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_shows_every_alert_to_fire() -> None:
    shown = {test["name"] for test in yaml.safe_load((RULES.parent / "rules_test.yml").read_text())["tests"]}
    assert set(ALERTS) <= shown


def test_the_quick_rules_are_the_rules(tmp_path: Path) -> None:
    quick = yaml.safe_load(quickened(RULES.read_text()))
    rules = yaml.safe_load(RULES.read_text())
    for group, other in zip(rules["groups"], quick["groups"], strict=True):
        for rule, quicker in zip(group["rules"], other["rules"], strict=True):
            assert rule.get("alert") == quicker.get("alert")
            assert rule.get("labels") == quicker.get("labels")
            minutes, quick_ms = (int(each.get("for", "0m").rstrip("ms")) for each in (rule, quicker))
            assert quick_ms == minutes * 60_000 // FASTER
