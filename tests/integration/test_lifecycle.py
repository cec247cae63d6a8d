"""A server from its start to its drain, as probes, scrapers and standard clients see it."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from student_client import RemoteTeacher
from teacher_server.app import TeacherApp
from teacher_server.config import ServerConfig
from teacher_server.local import local_teacher
from teacher_server.metrics.metrics import Metrics
from teacher_server.models.split import FrozenTeacher
from teaching_protocol.errors import Draining, TeachingError
from tests.calls import WIDTH, Caller, good_step
from tests.integration.gate import Gate, poll
from tests.integration.processes import ROOT, Address
from tests.integration.school import School
from tests.unit.teacher_server.tiny_models import tiny_inputs

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def health(port: int, service: str = "") -> int:
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        request = health_pb2.HealthCheckRequest(service=service)
        return int(health_pb2_grpc.HealthStub(channel).Check(request, timeout=5).status)


def test_threads_are_set_where_it_computes(bert: FrozenTeacher) -> None:
    """The count belongs to each thread: the engine's is its own, whatever the main thread has."""
    seen: list[tuple[str, int]] = []
    before = torch.get_num_threads()
    hook = bert.family.blocks[0].register_forward_pre_hook(
        lambda *_: seen.append((threading.current_thread().name, torch.get_num_threads()))
    )
    try:
        with TeacherApp(ServerConfig(model="tiny", port=0, metrics_port=-1, threads=before + 2), bert):
            assert torch.get_num_threads() == before
        assert set(seen) == {("engine-0", before + 2)}, "the warm-up has run"
    finally:
        hook.remove()
        torch.set_num_threads(before)


def test_health_before_the_warm_up_while_serving_and_after_the_drain(bert: FrozenTeacher) -> None:
    door, entered = threading.Event(), threading.Event()

    def hold(*_: Any) -> None:
        entered.set()
        assert door.wait(20)

    hook = bert.family.blocks[0].register_forward_pre_hook(hold)
    app = TeacherApp(ServerConfig(model="tiny", port=0, metrics_port=-1), bert)
    with ThreadPoolExecutor(1) as pool:
        starting = pool.submit(app.start)
        assert entered.wait(20)
        assert health(app.port) == health(app.port, "teaching_protocol.v1.Teacher") == NOT_SERVING
        door.set()
        starting.result(20)
        hook.remove()
        assert health(app.port) == health(app.port, "teaching_protocol.v1.Teacher") == SERVING
        with grpc.insecure_channel(f"127.0.0.1:{app.port}") as channel:
            changes = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=20)
            assert next(changes).status == SERVING
            closing = pool.submit(app.close)
            assert next(changes).status == NOT_SERVING
            closing.result(20)


@pytest.fixture
def command(model_folder: Callable[[str], Path], tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], Address]]:
    """`teacher-server serve` in a process of its own, its model behind a gate."""
    words = [sys.executable, "-m", "tests.integration.gated_cli", str(tmp_path), "serve", "--model"]
    words += [str(model_folder("bert")), "--port", "0", "--metrics-port", "0", "--threads", "1"]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline().split()
            assert [line[0], line[2]] == ["serving", "metrics"]
            ports = [int(address.rpartition(":")[2]) for address in (line[1], line[3])]
            yield process, Address(ports[0], ports[1], Gate(tmp_path))
        finally:
            process.kill()


def test_sigterm_drains(command: tuple[subprocess.Popen[str], Address]) -> None:
    process, server = command
    assert health(server.port) == SERVING
    ann = Caller(server.name, "ann").__enter__()
    bob = Caller(server.name, "bob").__enter__()
    with ThreadPoolExecutor(1) as pool:
        with server.gate.closed() as gate:  # type: ignore[union-attr]
            admitted = pool.submit(ann.forward)
            gate.wait_until_entered()
            process.send_signal(signal.SIGTERM)
            poll(lambda: server.metric("teacher_draining") == 1, "the drain begins")
            assert health(server.port) == NOT_SERVING
            with pytest.raises(Draining, match="export your state and enrol elsewhere"):
                bob.forward()
        assert admitted.result(20)[1].outputs["answer"].abs().sum() > 0
    assert process.wait(20) == 0
    for caller in (ann, bob):
        caller.teacher.close()


def test_reflection_lists_and_describes_the_service_where_it_was_asked_for(servers: dict[str, Address]) -> None:
    with grpc.insecure_channel(servers["bert"].name) as channel, pytest.raises(grpc.RpcError) as refused:
        ProtoReflectionDescriptorDatabase(channel).get_services()
    assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED
    with grpc.insecure_channel(servers["strict"].name) as channel:
        found = ProtoReflectionDescriptorDatabase(channel)
        assert {"teaching_protocol.v1.Teacher", "grpc.health.v1.Health"} <= set(found.get_services())
        file = found.FindFileContainingSymbol("teaching_protocol.v1.Teacher")
    assert [method.name for method in file.service[0].method][:3] == ["Describe", "Enroll", "Forward"]


def test_every_instrument_counts(servers: dict[str, Address]) -> None:
    server = servers["bert"]
    names = {metric.name for metric in Metrics().registry.collect()}
    own = tiny_inputs("bert", 2, 5)

    def reading() -> dict[str, float]:
        return {name: server.metric(name) for name in (
            "teacher_requests_total", "teacher_session_steps_total", "teacher_graph_cache_hits_total",
            "teacher_knowledge_cache_hits_total", "teacher_knowledge_cache_misses_total",
            "teacher_compute_seconds_count", "teacher_queue_seconds_count", "teacher_pack_seconds_count",
            "teacher_batch_rows_sum", "teacher_batch_tokens_sum", "teacher_transfer_bytes_total")}  # fmt: skip

    before = reading()
    with RemoteTeacher(server.name, student="counted", message_width=WIDTH) as teacher:
        teacher(torch.randn(2, 3, WIDTH)).sum().backward()
        teacher.step(0.1)
        own["input_ids"][:, 0] = torch.tensor([17, 18])  # rows nobody has asked for
        for _ in range(2):
            teacher.observe(own, ["pooled", "hidden.1"])
        assert server.metric("teacher_sessions") >= 1
        live = {sample[0] for sample in server.metrics()}
    grown = {name: value - before[name] for name, value in reading().items()}
    # Resolve, which packs no tensor; Describe, Enroll, Forward, Backward, Step, two observations, Leave
    assert grown["teacher_requests_total"] == grown["teacher_pack_seconds_count"] + 1 == 9
    assert grown["teacher_compute_seconds_count"] == grown["teacher_queue_seconds_count"] == 4
    assert grown["teacher_session_steps_total"] == grown["teacher_graph_cache_hits_total"] == 1
    assert grown["teacher_batch_rows_sum"] == 6
    assert grown["teacher_knowledge_cache_hits_total"] == 2
    assert grown["teacher_knowledge_cache_misses_total"] >= 2
    assert grown["teacher_transfer_bytes_total"] > 2 * 3 * WIDTH * 2 * 4
    assert server.metric("teacher_in_flight") == server.metric("teacher_draining") == 0
    assert server.metric("teacher_device_memory_bytes") > 10**7
    assert server.metric("teacher_model_info", family="bert", dtype="float32") == 1
    missing = {name for name in names if not any(sample.startswith(name) for sample in live)}
    # labelled, and nothing was refused, shared or sent as int8 yet
    assert missing <= {
        f"teacher_{name}" for name in ("rejected", "session_ends", "shared_bytes", "int8_error", "int8_fallbacks")
    }


STANDARD_CLIENT = """
import json, struct, sys
sys.path.insert(0, sys.argv[1])
import grpc
from teaching_protocol.v1 import teacher_pb2 as pb, teacher_pb2_grpc, tensor_pb2
assert pb.__file__.startswith(sys.argv[1])

def tensor(kind, shape, form, values):
    return tensor_pb2.Tensor(dtype=kind, shape=shape, data=struct.pack(f"<{len(values)}{form}", *values))

def floats(found):
    return list(struct.unpack(f"<{len(found.data) // 4}f", found.data))

numbers = json.loads(sys.argv[3])
with grpc.insecure_channel(sys.argv[2]) as channel:
    teacher = teacher_pb2_grpc.TeacherStub(channel)
    card = teacher.Describe(pb.DescribeRequest())
    settings = pb.SessionSettings(message_width=8, entry=1, exit=card.layers, codec_depth=2, pooling="mean",
        answer_from="message", inject="replace", optimizer=pb.OptimizerSettings(name="adamw", weight_decay=0.01,
        beta1=0.9, beta2=0.999, eps=1e-8))
    session = teacher.Enroll(pb.EnrollRequest(student="standard", settings=settings)).session
    def forward(number):
        return teacher.Forward(pb.ForwardRequest(session=session, call_id=f"f{number}", outputs=["answer"],
            backward_follows=True, grad_inputs=["message"], compression=tensor_pb2.COMPRESSION_NONE,
            inputs={"message": tensor(1, [2, 3, 8], "f", numbers["message"]),
                    "message_mask": tensor(6, [2, 3], "?", numbers["mask"])}))
    answer = floats(forward(1).outputs["answer"])
    reply = teacher.Backward(pb.BackwardRequest(session=session, call_id="b1", forward_id="f1",
        grads={"answer": tensor(1, [2, 3, 8], "f", numbers["grad"])}))
    step = teacher.Step(pb.StepRequest(session=session, step=1, lr=0.01, grad_scale=1.0))
    after = floats(forward(2).outputs["answer"])
    teacher.Renew(pb.RenewRequest(session=session))
    state = teacher.Export(pb.ExportRequest(session=session)).state
    assert teacher.Import(pb.ImportRequest(session=session, state=state)).step == 1
    teacher.Leave(pb.LeaveRequest(session=session))
print(json.dumps({"answer": answer, "gradient": floats(reply.grads["message"]), "after": after, "norm": step.grad_norm}))
"""


def test_a_client_made_from_the_protos_alone(
    servers: dict[str, Address], model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    protos = [str(path) for path in (ROOT / "protos").rglob("*.proto")]
    words = [
        "-m",
        "grpc_tools.protoc",
        f"-I{ROOT / 'protos'}",
        f"--python_out={tmp_path}",
        f"--grpc_python_out={tmp_path}",
    ]
    subprocess.run([sys.executable, *words, *protos], check=True, timeout=60)
    for folder in ("teaching_protocol", "teaching_protocol/v1"):
        (tmp_path / folder / "__init__.py").touch()
    numbers = {
        "message": torch.linspace(-1, 1, 48).tolist(), "grad": torch.linspace(1, 2, 48).tolist(),
        "mask": [True, True, True, True, True, False],
    }  # fmt: skip
    words = [sys.executable, "-I", "-c", STANDARD_CLIENT, str(tmp_path), servers["bert"].name, json.dumps(numbers)]
    found = json.loads(subprocess.run(words, check=True, timeout=60, capture_output=True, text=True).stdout)
    expected = good_step(local_teacher(str(model_folder("bert"))), "expected")
    for name, value in expected.items():
        torch.testing.assert_close(
            torch.tensor(found[name]), value.flatten() if value.dim() else value, atol=1e-5, rtol=1e-5
        )


def test_a_start_that_fails_lets_go_of_all_it_had_opened() -> None:
    """A model that fails in the warm-up, when ports are bound and threads run."""
    school = School()
    school.broken = True
    before = set(threading.enumerate())
    with pytest.raises(TeachingError, match="internal error"):
        school.app.start()
    assert school.app.port
    assert school.app.metrics_port
    poll(
        lambda: not {each.name for each in set(threading.enumerate()) - before if "grpc" not in each.name}, "no thread"
    )
    for port in (school.app.port, school.app.metrics_port):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", port))
