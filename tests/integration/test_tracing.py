"""Spans of a student and its teacher, two processes, arrive in one trace at a real OTLP receiver; off, there is nothing."""

from __future__ import annotations

import contextlib
import itertools
import subprocess
import sys
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from student_client.connection.transport import GrpcTransport
from student_client.training.runs import train
from teacher_server.config import ServerConfig
from teaching_protocol.errors import ConfigError, NonFiniteError
from teaching_protocol.tracing import Tracing, start_tracing
from teaching_protocol.verbs import Call, DescribeRequest
from tests.calls import WIDTH, Caller, attempt
from tests.integration.collector import Collector, Span
from tests.integration.gate import poll
from tests.integration.processes import Address, ServerProcess
from tests.unit.student_client.run_setup import quiet, run_config


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with Collector() as found:
        yield found


@pytest.fixture(scope="module")
def teacher(collector: Collector, model_folder: Callable[[str], Path]) -> Iterator[Address]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "200")  # milliseconds until what is done is sent
        process = ServerProcess(
            {"traced": {"model": str(model_folder("bert")), "tracing": collector.endpoint, "threads": 1}}
        )
        address = process.addresses["traced"]
    yield address
    assert process.close() == 0


@pytest.fixture(scope="module")
def spans(collector: Collector, teacher: Address, tmp_path_factory: pytest.TempPathFactory) -> list[Span]:
    """Of a run of three steps, once all have come."""
    config = run_config(
        tmp_path_factory.mktemp("run"),
        method="talking",
        teacher__address=teacher.name,
        training__max_steps=3,
        training__tracing=collector.endpoint,
    )
    train(config, progress=quiet())
    steps = {each.trace for each in collector.spans if each.name == "step"}

    def served() -> list[Span]:
        return [each for each in collector.spans if each.name == "serve Step" and each.trace in steps]

    poll(lambda: len(served()) == 3, "the teacher's spans come, too", 20)
    return collector.spans


def of(spans: list[Span], name: str) -> list[Span]:
    return [each for each in spans if each.name == name]


def test_each_step_is_one_trace_of_both_processes(spans: list[Span]) -> None:
    steps = of(spans, "step")
    assert sorted(each.facts["step"] for each in steps) == [1, 2, 3]
    assert len({each.trace for each in steps}) == 3
    for step in steps:
        trace = [each for each in spans if each.trace == step.trace]
        assert {each.service for each in trace} == {"student-client", "teacher-server"}
        assert Counter(each.name for each in trace)["serve Backward"] >= 1
        assert step.parent == ""


def test_calls_lie_below_their_step_and_the_teacher_s_spans_below_their_call(spans: list[Span]) -> None:
    by_id = {each.id: each for each in spans}
    served = [each for each in spans if each.name in ("serve Forward", "serve Backward", "serve Step")]
    inside = [each for each in served if by_id[each.parent].parent]
    assert len(inside) >= 9, "three steps of a Forward, a Backward and a Step at the least"
    for each in inside:
        call = by_id[each.parent]
        step = by_id[call.parent]
        assert (call.name, step.name) == (each.name.removeprefix("serve "), "step")
        assert (call.service, each.service) == ("student-client", "teacher-server")
        slack = 5_000_000  # two readings of one clock
        assert step.begin <= call.begin <= each.begin + slack
        assert each.end - slack <= call.end <= step.end


def test_a_call_is_unpacked_waits_is_computed_and_packed(spans: list[Span]) -> None:
    for served in of(spans, "serve Forward"):
        parts = sorted((each for each in spans if each.parent == served.id), key=lambda each: (each.begin, each.end))
        assert [each.name for each in parts] == ["unpack", "queue", "compute", "pack"]
        assert parts[0].begin == served.begin
        assert parts[-1].end == served.end
        for before, after in itertools.pairwise(parts):
            assert before.end == after.begin
        assert parts[2].end > parts[2].begin


def test_a_refused_call_says_its_error_s_class_and_no_more(collector: Collector, teacher: Address) -> None:
    with Caller(teacher.name, "bad") as caller:
        inputs = {"message": torch.full((1, 1, WIDTH), float("nan"))}
        assert isinstance(attempt(lambda: caller.forward(inputs=inputs)), NonFiniteError)
    poll(lambda: any(each.error for each in collector.spans), "the refusal is told", 20)
    (refused,) = [each for each in collector.spans if each.error]
    assert (refused.name, refused.error) == ("serve Forward", "NonFiniteError")


def test_the_slowest_calls_of_a_histogram_name_their_trace(spans: list[Span], teacher: Address) -> None:
    request = urllib.request.Request(
        f"http://127.0.0.1:{teacher.metrics_port}/metrics", headers={"Accept": "application/openmetrics-text"}
    )
    with urllib.request.urlopen(request, timeout=10) as page:
        text = page.read().decode()
    named = {
        line.partition('trace_id="')[2].partition('"')[0]
        for line in text.splitlines()
        if line.startswith("teacher_call_seconds_bucket") and "trace_id" in line
    }
    assert named
    assert named & {each.trace for each in spans}


def test_without_an_endpoint_nothing_is_made_or_sent(teacher: Address) -> None:
    tracing = start_tracing("student-client")
    assert not tracing.is_on
    with tracing.step(1), tracing.call("Forward") as metadata:
        assert metadata == ()
    assert tracing.served((), "Forward", [("unpack", 0.0, 1.0)]) == ""
    tracing.close()


def test_the_variable_that_everybody_knows_turns_it_on(monkeypatch: pytest.MonkeyPatch, collector: Collector) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint)
    monkeypatch.setenv("OTEL_SERVICE_NAME", "my-student")
    tracing = start_tracing("student-client")
    with tracing.step(77):
        pass
    tracing.close()
    (found,) = [each for each in collector.spans if each.facts.get("step") == 77]
    assert found.service == "my-student"


def test_a_trace_id_that_is_none_makes_a_trace_of_its_own(collector: Collector, teacher: Address) -> None:
    class Liar(Tracing):
        def call(self, method: str):  # type: ignore[no-untyped-def]
            return contextlib.nullcontext((("traceparent", "00-zz-xx-01"),))

    before = len(of(collector.spans, "serve Describe"))
    transport = GrpcTransport(teacher.name, "none", shared_memory=False)
    transport.tracing = Liar()
    transport.describe(DescribeRequest(), Call())
    transport.close()
    poll(lambda: len(of(collector.spans, "serve Describe")) > before, "it was served and traced", 20)
    assert of(collector.spans, "serve Describe")[-1].parent == ""


def test_off_opentelemetry_is_not_even_imported() -> None:
    code = (
        "import sys\nfrom teaching_protocol.tracing import start_tracing\nimport teacher_server.app, student_client.training.runs\n"
        "assert not start_tracing('x').is_on\nassert not any(name.startswith('opentelemetry') for name in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_an_endpoint_without_the_packages_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.resources", None)
    config = ServerConfig(model="tiny", tracing="http://127.0.0.1:1")
    with pytest.raises(ConfigError, match=r"pip install 'talking-models\[tracing\]'"):
        start_tracing("teacher-server", config.tracing)
