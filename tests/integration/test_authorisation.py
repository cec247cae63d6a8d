"""Who may do what, every RPC by every caller, against a real server with tokens; and tokens that come and go while it runs."""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import prometheus_client
import pytest
import torch
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from student_client import RemoteTeacher
from student_client.connection.credentials import Credentials
from student_client.connection.transport import GrpcTransport
from teacher_server.app import TeacherApp
from teacher_server.config import ServerConfig
from teacher_server.models.split import FrozenTeacher
from teacher_server.security.tokens import add_token, revoke
from teaching_protocol import verbs
from teaching_protocol.channel import TOKEN_KEY
from teaching_protocol.errors import (
    InvalidSetting,
    PermissionDenied,
    QuotaExceeded,
    SessionNotFound,
    StaleEpoch,
    StudentNameTaken,
    Unauthenticated,
)
from teaching_protocol.wire import METHODS
from tests.calls import Caller, attempt, backward_request, forward_request, in_s
from tests.integration.gate import poll
from tests.integration.processes import Address, ServerProcess

CALLERS = ("no token", "wrong token", "another's secret", "revoked", "other student's session", "old epoch", "right")
STRANGERS = CALLERS[:4]


@dataclasses.dataclass
class Town:
    """A server with tokens, and files with the tokens of those who live there."""

    address: Address
    file: Path
    folder: Path

    def give(self, name: str) -> Credentials:
        return self.keep(name, add_token(self.file, name))

    def keep(self, name: str, token: str) -> Credentials:
        path = self.folder / f"{name}.token"
        path.touch(mode=0o600)
        path.write_text(token + "\n")
        return Credentials(token_file=path)

    def transport(self, credentials: Credentials | None, **options: Any) -> GrpcTransport:
        return GrpcTransport(self.address.name, "none", patience_s=0.2, credentials=credentials, **options)


@pytest.fixture(scope="module")
def town(model_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Town]:
    folder = tmp_path_factory.mktemp("town")
    file = folder / "tokens.json"
    quotas = [
        {"identities": "small", "sessions": 1, "state_bytes": 100_000},
        {"identities": "slow", "tokens_per_s": 1.0},
        {"identities": "hasty", "enrolls_per_minute": 1.0},
    ]
    town = Town(Address(0, 0), file, folder)
    for name in ("ann", "bob", "gone"):
        town.give(name)
    config = {"model": str(model_folder("bert")), "tokens": str(file), "reflection": True, "identity_quotas": quotas}
    process = ServerProcess({"town": config})
    town.address = process.addresses["town"]
    GrpcTransport(town.address.name, credentials=Credentials(token_file=folder / "gone.token"))
    revoke(file, "gone")
    yield town
    assert process.close() == 0


@pytest.fixture(scope="module")
def secrets(town: Town) -> dict[str, Credentials | None]:
    ann, bob = ((town.folder / f"{name}.token").read_text().strip() for name in ("ann", "bob"))
    mixed = f"{ann[:21]}{bob[21:]}"  # the id of ann with the secret of bob
    own = Credentials(token_file=town.folder / "ann.token")
    return {
        "no token": None,
        "wrong token": town.keep("wrong", "ttk-0123456789abcdef-" + "x" * 43),
        "another's secret": town.keep("mixed", mixed),
        "revoked": Credentials(token_file=town.folder / "gone.token"),
        "other student's session": Credentials(token_file=town.folder / "bob.token"),
        "old epoch": own,
        "right": own,
    }


def request_of(method: str, caller: Caller, who: str) -> Any:
    """A good request of a verb about ann's session."""
    ref = caller.session
    if method == "Backward":
        forward = forward_request(ref)
        caller.teacher.forward(forward, in_s(20))
        found: Any = backward_request(forward)
    elif method == "Enroll":
        found = verbs.EnrollRequest("student", caller.settings, resume=ref.session_id)
    elif method == "Import":
        found = verbs.ImportRequest(ref, caller.export())
    elif method == "Describe":
        return verbs.DescribeRequest()
    elif method == "Forward":
        found = forward_request(ref)
    elif method == "Step":
        found = verbs.StepRequest(ref, 1, 0.01)
    else:
        found = getattr(verbs, f"{method}Request")(ref)
    if who == "old epoch" and method != "Enroll":
        return dataclasses.replace(found, session=dataclasses.replace(ref, epoch=ref.epoch - 1))
    return found


def expected_of(method: str, who: str) -> type[Any]:
    """The answer: an error's class, or the reply's."""
    reply = next(each.reply for each in METHODS if each.name == method)
    if who in STRANGERS:
        return Unauthenticated
    if method == "Describe":  # about nobody's session
        return reply
    if who == "other student's session":
        return PermissionDenied
    if who == "old epoch" and method != "Enroll":  # which is what raises the epoch
        return StaleEpoch
    return reply


@pytest.mark.parametrize("who", CALLERS)
@pytest.mark.parametrize("method", [method.name for method in METHODS])
def test_every_rpc_by_every_caller(
    method: str, who: str, town: Town, secrets: dict[str, Credentials | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TEACHER_TOKEN", raising=False)
    owner, caller = town.transport(secrets["right"]), town.transport(secrets[who])
    with Caller(owner, "student") as session:
        resumed = owner.enroll(verbs.EnrollRequest("student", session.settings, session.session.session_id), in_s(20))
        session.session = resumed.session
        request = request_of(method, session, who)
        verb = next(each.verb for each in METHODS if each.name == method)
        before = owner.export(verbs.ExportRequest(session.session), in_s(20))
        found = attempt(lambda: getattr(caller, verb)(request, in_s(20)))
        assert type(found) is expected_of(method, who), found
        if isinstance(found, Exception):  # and nothing has come of it
            assert owner.export(verbs.ExportRequest(session.session), in_s(20)) == before
        if isinstance(found, verbs.EnrollReply):
            session.session = found.session
        elif isinstance(found, verbs.LeaveReply):
            session.__enter__()
    owner.close()
    caller.close()


def test_health_is_open_and_reflection_is_not(town: Town, secrets: dict[str, Credentials | None]) -> None:
    with grpc.insecure_channel(town.address.name) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        reply = stub.Check(health_pb2.HealthCheckRequest(), timeout=10)
        assert reply.status == health_pb2.HealthCheckResponse.SERVING
        assert next(stub.Watch(health_pb2.HealthCheckRequest(), timeout=10)).status == reply.status
        with pytest.raises(grpc.RpcError) as refused:
            ProtoReflectionDescriptorDatabase(channel).get_services()
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_what_is_for_debugging_is_off_unless_asked_for(bert: FrozenTeacher) -> None:
    """Neither service is there at all; health is."""
    services = "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", "grpc.channelz.v1.Channelz/GetServers"
    server = TeacherApp(ServerConfig(model="tiny", port=0, metrics_port=-1), bert)
    with server as app, grpc.insecure_channel(f"127.0.0.1:{app.port}") as channel:
        for service in services:
            with pytest.raises(grpc.RpcError) as refused:
                channel.unary_unary(f"/{service}")(b"", timeout=10)
            assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED
        assert health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10).status


@pytest.mark.parametrize(
    "value", ["", "Bearer", "Bearer ", "Basic YW5uOmFubg==", "Bearer x y", "bearer ttk--", "x" * 4000]
)
def test_what_is_no_bearer_token(value: str, town: Town) -> None:
    with grpc.insecure_channel(town.address.name) as channel, pytest.raises(grpc.RpcError) as refused:
        channel.unary_unary(METHODS[0].path)(b"", timeout=10, metadata=((TOKEN_KEY, value),))
    assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert "x y" not in refused.value.details()


@pytest.mark.parametrize("who", STRANGERS)
def test_a_refusal_is_not_tried_again(
    who: str, town: Town, secrets: dict[str, Credentials | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TEACHER_TOKEN", raising=False)
    before = town.address.metric("teacher_requests_total", code="UNAUTHENTICATED")
    transport = GrpcTransport(town.address.name, patience_s=5.0, credentials=secrets[who])
    with pytest.raises(Unauthenticated, match="token add NAME"):
        transport.describe(verbs.DescribeRequest(), in_s(10))
    assert town.address.metric("teacher_requests_total", code="UNAUTHENTICATED") == before + 1, "its Resolve"
    transport.close()


def test_two_tokens_in_one_call_are_none(town: Town, secrets: dict[str, Credentials | None]) -> None:
    own = secrets["right"]
    assert own is not None
    with grpc.insecure_channel(town.address.name) as channel, pytest.raises(grpc.RpcError) as refused:
        channel.unary_unary(METHODS[0].path)(b"", timeout=10, metadata=own.metadata() * 2)
    assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_strangers_are_refused_before_their_request_is_read(town: Town) -> None:
    """A request over the size limit of every server is not even looked at."""
    before = town.address.metric("teacher_transfer_bytes_total", direction="received")
    with pytest.raises(Unauthenticated):
        town.transport(None).import_(verbs.ImportRequest(state=bytes(50_000_000)), in_s(20))
    assert town.address.metric("teacher_transfer_bytes_total", direction="received") == before


def test_names_of_students_are_each_identitys_own(town: Town, secrets: dict[str, Credentials | None]) -> None:
    ann, bob = town.transport(secrets["right"]), town.transport(secrets["other student's session"])
    with Caller(ann, "same") as first, Caller(bob, "same") as second:
        assert first.session != second.session
        taken = attempt(lambda: ann.enroll(verbs.EnrollRequest("same", first.settings), in_s(20)))
        assert isinstance(taken, StudentNameTaken)


def test_shared_memory_serves_its_owner_alone(town: Town, secrets: dict[str, Credentials | None]) -> None:
    """Each card has a ticket of its caller; with another's secret a call finds nothing, and goes another way by itself."""
    options = {"message_width": 256, "compression": "none"}
    with RemoteTeacher(town.address.name, student="shares", credentials=secrets["right"], **options) as teacher:  # type: ignore[arg-type]
        teacher(torch.ones(16, 32, 256))
        assert teacher._session.transport.bytes_shared > 0  # type: ignore[attr-defined]
    cards = [town.transport(secrets["right"]).describe(verbs.DescribeRequest(), in_s(10)) for _ in range(2)]
    assert cards[0].same_host != cards[1].same_host


def test_a_token_comes_and_goes_while_the_server_runs(town: Town) -> None:
    credentials = town.give("carl")
    transport = town.transport(credentials)
    session = Caller(transport, "carl").__enter__()
    ended = town.address.metric("teacher_session_ends_total", cause="revoked")
    assert revoke(town.file, "carl") == 1
    for verb, request in (("forward", forward_request(session.session)), ("describe", verbs.DescribeRequest())):
        assert isinstance(attempt(lambda: getattr(transport, verb)(request, in_s(10))), Unauthenticated)  # noqa: B023
    poll(lambda: town.address.metric("teacher_session_ends_total", cause="revoked") == ended + 1, "the session ends")
    transport.close()
    again = town.transport(town.give("carl"))
    found = attempt(lambda: again.renew(verbs.RenewRequest(session.session), in_s(10)))
    assert isinstance(found, SessionNotFound)
    again.close()


def test_a_token_is_changed_without_a_break(town: Town) -> None:
    first = town.transport(town.give("dora"))
    with Caller(first, "dora") as session:
        old = (town.folder / "dora.token").read_text().split("-")[1]
        town.give("dora")  # the client's file has the new one from now on
        revoke(town.file, "dora", old)
        assert session.forward()[1].outputs
    first.close()


def test_a_broken_token_file_changes_nothing_and_a_missing_one_lets_nobody_in(town: Town) -> None:
    transport = town.transport(town.give("eve"))
    transport.describe(verbs.DescribeRequest(), in_s(10))
    text = town.file.read_text()
    town.file.write_text(text[:-20])
    transport.describe(verbs.DescribeRequest(), in_s(10))
    aside = town.file.rename(town.folder / "aside.json")
    assert isinstance(attempt(lambda: transport.describe(verbs.DescribeRequest(), in_s(10))), Unauthenticated)
    aside.write_text(text)
    aside.rename(town.file)
    transport.describe(verbs.DescribeRequest(), in_s(10))
    transport.close()


def test_sessions_and_bytes_of_an_identity(town: Town) -> None:
    small = town.give("small")
    with Caller(town.transport(small), "first"):
        found = attempt(Caller(town.transport(small), "second").__enter__)
        assert isinstance(found, QuotaExceeded)
        assert "this identity has 1 sessions, its quota is 1" in str(found)
    found = attempt(Caller(town.transport(small), "large", message_width=64, codec_depth=8).__enter__)
    assert isinstance(found, InvalidSetting)
    assert "the sessions of this identity may have 100,000" in str(found)


def test_tokens_a_second_of_an_identity_count_for_all_its_sessions(town: Town) -> None:
    slow = town.give("slow")
    with Caller(town.transport(slow), "one") as one, Caller(town.transport(slow), "two") as two:
        one.forward()  # runs into debt
        found = attempt(lambda: two.teacher.forward(forward_request(two.session), in_s(0.3)))
        assert isinstance(found, QuotaExceeded)
        assert found.retry_after_s > 0


def test_how_often_an_identity_enrolls(town: Town) -> None:
    with Caller(town.transport(town.give("hasty")), "first") as first:
        again = [verbs.EnrollRequest(f"n{number}", first.settings) for number in range(9)]
        found = attempt(lambda: [first.teacher.enroll(each, in_s(0.3)) for each in again])
        assert isinstance(found, QuotaExceeded)
        assert "enrolls a second" in str(found)


def test_an_identitys_calls_in_flight(bert: FrozenTeacher, tmp_path: Path) -> None:
    """Ten sessions of one identity, four calls at once: the others are told to come back, and another's call passes."""
    file = tmp_path / "tokens.json"
    credentials = []
    for name in ("many", "other"):
        path = tmp_path / name
        path.touch(mode=0o600)
        path.write_text(add_token(file, name))
        credentials.append(Credentials(token_file=path))
    rules = ({"identities": "many", "in_flight": 4},)
    config = ServerConfig(model="tiny", port=0, metrics_port=-1, tokens=file, identity_quotas=rules, threads=1)
    with TeacherApp(config, bert) as app:
        address = f"127.0.0.1:{app.port}"
        many, other = (GrpcTransport(address, "none", patience_s=0.2, credentials=each) for each in credentials)
        callers = [Caller(many, f"s{number}").__enter__() for number in range(10)]
        door = threading.Event()
        hook = bert.family.blocks[-1].register_forward_pre_hook(lambda *_: door.wait(40) and None)
        with ThreadPoolExecutor(12) as pool, Caller(other, "alone") as alone, ExitStack() as stack:
            stack.callback(hook.remove)
            stack.callback(door.set)

            def call(caller: Caller, seconds: float) -> Future[Any]:
                return pool.submit(
                    lambda: attempt(lambda: many.forward(forward_request(caller.session), in_s(seconds)))
                )

            calls = [call(each, 40) for each in callers[:4]]
            poll(lambda: app.metrics.registry.get_sample_value("teacher_in_flight") == 4, "four are in")
            calls += [call(each, 2) for each in callers[4:]]
            poll(lambda: sum(each.done() for each in calls) == 6, "six are refused for good")
            passing = pool.submit(alone.forward)
            door.set()
            assert passing.result(20)[1].outputs
            found = [call.result(20) for call in calls]
        refused = [each for each in found if isinstance(each, QuotaExceeded)]
        assert len(refused) == 6
        assert "this identity has 4 calls open" in str(refused[0])
        many.close()
        other.close()


def test_no_secret_is_written_anywhere(bert: FrozenTeacher, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Not in the log at its most talkative, not in the metrics, not in what objects say of themselves."""
    file, path = tmp_path / "tokens.json", tmp_path / "own"
    path.touch(mode=0o600)
    token = add_token(file, "ann")
    path.write_text(token)
    credentials = Credentials(token_file=path)
    config = ServerConfig(model="tiny", port=0, metrics_port=-1, tokens=file)
    with caplog.at_level(logging.DEBUG), TeacherApp(config, bert) as app:
        transport = GrpcTransport(f"127.0.0.1:{app.port}", "none", patience_s=0.1, credentials=credentials)
        with Caller(transport, "student") as caller:
            caller.forward()
            caller.teacher.enroll(verbs.EnrollRequest("student", caller.settings, caller.session.session_id), in_s(9))
            session = caller.session
            assert isinstance(attempt(caller.forward), StaleEpoch)
            caller.session = dataclasses.replace(session, epoch=2)
        said = prometheus_client.generate_latest(app.metrics.registry).decode() + caplog.text
        said += "".join(str(record.__dict__) for record in caplog.records)
        said += repr(
            (session, caller.session, app.actor.sessions.live(), verbs.EnrollRequest(resume=session.session_id))
        )
        said += repr((app, app._authority, app._authority.__dict__, credentials, transport, config, app.actor))
        transport.close()
    assert "StaleEpoch" in said
    for secret in (token, token.split("-", 2)[2], session.session_id):
        assert secret not in said
