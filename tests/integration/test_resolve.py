"""Resolve over real servers: who is told of whom, students that find their replica by it, and a port that has the directory alone."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest
import torch
from grpc_health.v1 import health_pb2, health_pb2_grpc

from student_client import RemoteTeacher
from student_client.connection.credentials import Credentials
from student_client.connection.pinning import ranked
from student_client.connection.resolving import resolve
from teacher_server.app import TeacherApp
from teacher_server.config import ServerConfig
from teacher_server.fleet.port import DirectoryPort
from teacher_server.fleet.settings import FleetSettings
from teacher_server.models.split import FrozenTeacher
from teacher_server.security.tokens import add_token
from teaching_protocol.directory import RESOLVE, Replica
from teaching_protocol.errors import ConfigError, TeacherUnavailable, Unauthenticated
from teaching_protocol.threads import side_threads
from tests.calls import WIDTH
from tests.integration.gate import poll

CONFIG = ServerConfig(model="tiny", port=0, metrics_port=-1)


class Town:
    """Teachers in this process that tell of each other, and the port of their directory."""

    def __init__(self, stack: ExitStack, teacher: FrozenTeacher, count: int) -> None:
        self.listing: list[Replica] = []
        self.apps = [
            stack.enter_context(TeacherApp(CONFIG, teacher, listing=lambda: self.listing)) for _ in range(count)
        ]
        self.port = stack.enter_context(DirectoryPort(CONFIG, lambda: self.listing))
        self.listing += [self.replica(number) for number in range(count)]

    @property
    def directory(self) -> str:
        return f"127.0.0.1:{self.port.port}"

    def replica(self, number: int) -> Replica:
        return Replica(f"replica-{number}", f"127.0.0.1:{self.apps[number].port}")

    def first(self, student: str) -> int:
        return int(ranked(student, [each.name for each in self.listing])[0].rpartition("-")[2])


@pytest.fixture
def town(bert: FrozenTeacher) -> Iterator[Town]:
    with ExitStack() as stack:
        yield Town(stack, bert, 2)


def test_students_find_their_replica_by_the_directory_or_by_any_replica(town: Town) -> None:
    for student in ("ann", "bob", "eve", "kim", "lou"):
        for asked in (town.directory, town.replica(0).address, town.replica(1).address):
            with RemoteTeacher(asked, student=student, message_width=WIDTH) as teacher:
                there = [len(app.actor.sessions) for app in town.apps]
                assert there[town.first(student)] == 1
                assert sum(there) == 1
                assert teacher.forward(torch.ones(1, 2, WIDTH)).shape == (1, 2, WIDTH)


def test_a_session_moves_to_a_replica_that_joins(town: Town) -> None:
    """And takes its state along: the codec answers there as it did here."""
    student = next(name for name in ("ann", "bob", "eve", "kim", "lou") if town.first(name) == 1)
    joins = town.listing.pop(1)
    message = torch.ones(1, 2, WIDTH)
    with RemoteTeacher(town.directory, student=student, message_width=WIDTH, compression="none", seed=7) as teacher:
        assert not teacher.has_better_place()
        teacher.forward(message).square().mean().backward()
        teacher.step(lr=0.1)
        before, state = teacher.forward(message), teacher.export_state()
        town.listing.append(joins)
        assert teacher.has_better_place()
        teacher.move_if_better()
        assert [len(app.actor.sessions) for app in town.apps] == [0, 0]
        teacher.describe()
        teacher.enroll(state)
        assert [len(app.actor.sessions) for app in town.apps] == [0, 1]
        assert torch.equal(teacher.forward(message), before)
        assert not teacher.has_better_place()


def test_a_teacher_alone_tells_of_nobody(bert: FrozenTeacher) -> None:
    with TeacherApp(CONFIG, bert) as app:
        assert resolve(f"127.0.0.1:{app.port}", Credentials(), 5.0) == ()


def test_nobody_answers_where_nobody_is() -> None:
    assert resolve("127.0.0.1:1", Credentials(), 5.0) is None


def test_a_directory_of_nobody_says_so(town: Town) -> None:
    town.listing.clear()
    with pytest.raises(TeacherUnavailable, match="no teacher of this fleet serves now"):
        resolve(town.directory, Credentials(), 5.0)
    with pytest.raises(TeacherUnavailable, match="no teacher of this fleet serves now"):
        RemoteTeacher(town.directory, student="ann", message_width=WIDTH, patience_s=0.2).enroll()


def test_a_student_that_is_there_before_its_directory_waits_for_it(town: Town) -> None:
    """It knows that address alone. Whoever answers there is asked who serves, and not taken for a teacher."""
    with socket.create_server(("127.0.0.1", 0)) as nobody, side_threads(1, "student") as pool:
        address = f"127.0.0.1:{nobody.getsockname()[1]}"
        student = RemoteTeacher(address, student="ann", message_width=WIDTH, patience_s=20.0)
        enrolling = pool.submit(student.enroll)
        for _ in range(2):  # it has asked, and tried; nobody is there
            nobody.accept()[0].close()
        nobody.close()
        config = CONFIG.model_copy(update={"port": int(address.rpartition(":")[2])})
        with DirectoryPort(config, lambda: town.listing):
            teacher = enrolling.result(30)
            assert teacher.forward(torch.ones(1, 2, WIDTH)).shape == (1, 2, WIDTH)
            assert [len(app.actor.sessions) for app in town.apps][town.first("ann")] == 1
            teacher.leave()


def test_a_headless_service_whose_addresses_change(bert: FrozenTeacher, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in Kubernetes: a pod is replaced by one of another address, which the name then has; the session goes there."""
    pods: list[str] = ["127.0.0.1"]
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, port, type: [(2, 1, 6, "", (pod, port)) for pod in pods])
    config = CONFIG.model_copy(update={"handoff_s": 20.0})
    message = torch.ones(1, 2, WIDTH)
    old = TeacherApp(config, bert).start()
    with side_threads(1, "drain") as pool:
        name = f"dns:///teachers-pods.lab.svc:{old.port}"
        fields = {"host": "127.0.0.2", "port": old.port}  # all pods of a service have one port
        teacher = RemoteTeacher(name, student="ann", message_width=WIDTH, compression="none", seed=7).enroll()
        teacher.forward(message).square().mean().backward()
        teacher.step(lr=0.1)
        before = teacher.forward(message)
        draining = pool.submit(old.close)
        poll(lambda: old.metrics.registry.get_sample_value("teacher_draining"), "it drains")
        with TeacherApp(config.model_copy(update=fields), bert) as new:
            pods[:] = ["127.0.0.2"]
            assert teacher.has_better_place()
            state = teacher.export_state()
            teacher.move_if_better()
            draining.result(30)  # nobody is left there
            teacher.describe()
            teacher.enroll(state)
            assert torch.equal(teacher.forward(message), before)
            assert len(new.actor.sessions) == 1
            teacher.leave()


def test_the_directorys_port_tells_probes_and_is_no_teacher(town: Town) -> None:
    with grpc.insecure_channel(town.directory) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for is_complete, status in ((True, 1), (False, 2)):
            town.port.serving(is_complete=is_complete)
            assert stub.Check(health_pb2.HealthCheckRequest(), timeout=10).status == status
        with pytest.raises(grpc.RpcError) as refused:
            channel.unary_unary("/teaching_protocol.v1.Teacher/Describe")(b"", timeout=10)
        assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("data", [b"\xff", b"\x0a\x7f", bytes(5000), b"\x0a\x01a" * 1000])
def test_what_is_no_question_is_a_typed_error(data: bytes, town: Town) -> None:
    for address in (town.directory, town.replica(0).address):
        with grpc.insecure_channel(address) as channel, pytest.raises(grpc.RpcError) as refused:
            channel.unary_unary(RESOLVE)(data, timeout=10)
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_strangers_are_told_nothing(bert: FrozenTeacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TEACHER_TOKEN", raising=False)
    file, own = tmp_path / "tokens.json", tmp_path / "ann.token"
    own.touch(mode=0o600)
    own.write_text(add_token(file, "ann"))
    wrong = tmp_path / "wrong.token"
    wrong.touch(mode=0o600)
    wrong.write_text("ttk-0123456789abcdef-" + "x" * 43)
    config = CONFIG.model_copy(update={"tokens": file})
    listing = [Replica("replica-0", "127.0.0.1:9")]
    with TeacherApp(config, bert, listing=lambda: listing) as app, DirectoryPort(config, lambda: listing) as port:
        for address in (f"127.0.0.1:{app.port}", f"127.0.0.1:{port.port}"):
            assert resolve(address, Credentials(token_file=own), 10.0) == tuple(listing)
            for stranger in (Credentials(), Credentials(token_file=wrong)):
                with pytest.raises(Unauthenticated):
                    resolve(address, stranger, 10.0)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"replicas": 5, "most": 4}, "expected min to max, 5 to 4"),
        ({"replicas": 1, "least": 2}, "expected min to max, 2 to 1"),
        ({"down_queue_s": 1.0}, "expected less than up_queue_s"),
        ({"hung_s": 1.0}, "expected stale_s, 3.0, or more"),
        ({"name": "No Name"}, "name"),
    ],
)
def test_settings_that_contradict_themselves(fields: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        FleetSettings.model_validate(fields)


def test_without_ray_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    from command_config.ray_cluster import RayCluster

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"pip install 'talking-models\[ray\]'"):
        RayCluster(None)
