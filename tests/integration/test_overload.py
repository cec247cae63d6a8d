"""A full server: everybody is served in the end, nobody comes back too early, and control waits for nobody."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch

from student_client.connection.transport import GrpcTransport
from teaching_protocol import verbs
from teaching_protocol.channel import ERROR_KEY, RETRY_AFTER_KEY
from teaching_protocol.errors import InvalidSetting, QuotaExceeded
from teaching_protocol.wire import write
from tests.calls import WIDTH, Caller, attempt, backward_request, forward_request, in_s
from tests.integration.gate import poll
from tests.integration.processes import Address, ServerProcess


@pytest.fixture(scope="module")
def crowded(
    model_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Address]]:
    """Servers with few permits, and one with quotas."""
    gates = tmp_path_factory.mktemp("crowded")
    quotas = [{"students": "slow-*", "tokens_per_s": 40}, {"students": "team-*", "sessions": 2, "state_bytes": 30_000}]
    configs: dict[str, dict[str, Any]] = {
        "few": {"permits": 4, "gate": str(gates / "few"), "max_rows": 16, "max_tokens": 32},
        "quotas": {"quotas": quotas},
    }
    process = ServerProcess({name: {"model": str(model_folder("bert"))} | config for name, config in configs.items()})
    yield process.addresses
    assert process.close() == 0


class Watched(GrpcTransport):
    """A transport that notes when it was refused, with what delay, and when it tried again."""

    def __init__(self, address: str) -> None:
        super().__init__(address, "none")
        self.refusals: list[tuple[float, float]] = []
        self.tries: list[float] = []

    def _once(self, *call: Any) -> tuple[bytes, str]:
        self.tries.append(time.monotonic())
        try:
            return super()._once(*call)
        except Exception as error:
            self.refusals.append((time.monotonic(), getattr(error, "retry_after_s", 0.0)))
            raise


def test_all_calls_succeed_in_the_end_and_none_is_tried_again_too_early(crowded: dict[str, Address]) -> None:
    server = crowded["few"]
    students = [Caller(Watched(server.name), f"crowd-{number}") for number in range(24)]

    def train(caller: Caller) -> None:
        with caller:
            for step in range(1, 4):
                forward = forward_request(caller.session)
                caller.teacher.forward(forward, in_s(60))
                caller.teacher.backward(backward_request(forward), in_s(60))
                caller.step(step)

    with ThreadPoolExecutor(24) as pool:
        list(pool.map(train, students))
    refused = 0
    for caller in students:
        transport: Any = caller.teacher
        for at, delay in transport.refusals:
            refused += 1
            assert delay >= 0.05
            again = min((tried for tried in transport.tries if tried > at), default=None)
            assert again is not None, "a call was given up"
            assert again - at >= delay
        transport.close()
    assert refused > 0, "the server was never full"
    poll(lambda: server.metric("teacher_in_flight") == 0, "the permits are given back")


def test_control_waits_for_nobody_while_the_server_is_full_and_flooded(crowded: dict[str, Address]) -> None:
    server = crowded["few"]
    with Caller(server.name, "heart") as heart, grpc.insecure_channel(server.name) as channel:
        raw = channel.unary_unary("/teaching_protocol.v1.Teacher/Forward")
        health = channel.unary_unary("/grpc.health.v1.Health/Check")
        with server.gate.closed() as gate, ThreadPoolExecutor(4) as pool:  # type: ignore[union-attr]
            others = [Caller(server.name, f"flood-{number}").__enter__() for number in range(4)]
            held = [pool.submit(other.forward) for other in others]
            gate.wait_until_entered()
            poll(lambda: server.metric("teacher_in_flight") == 4, "every permit is taken")
            large = write(forward_request(heart.session, inputs={"message": torch.zeros(16, 32, WIDTH)}))
            flood: list[Any] = [raw.future(large, timeout=30) for _ in range(400)]
            for _ in range(20):
                started = time.monotonic()
                assert heart.teacher.renew(verbs.RenewRequest(heart.session), in_s(5)).lease_s > 0
                heart.teacher.describe(verbs.DescribeRequest(), in_s(5))
                assert health(b"", timeout=5) == b"\x08\x01"
                assert time.monotonic() - started < 5
            for call in flood:
                assert call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            found = dict(flood[0].trailing_metadata())
            assert found[ERROR_KEY] == "Overloaded"
            assert float(found[RETRY_AFTER_KEY]) >= 0.05
            gate.open()
            for future, other in zip(held, others, strict=True):
                assert future.result(20)[1].outputs
                other.__exit__()


def test_every_verb_of_work_is_refused_alike(crowded: dict[str, Address]) -> None:
    server = crowded["few"]
    with Caller(server.name, "verbs") as caller, grpc.insecure_channel(server.name) as channel:  # noqa: SIM117
        with server.gate.closed() as gate, ThreadPoolExecutor(4) as pool:  # type: ignore[union-attr]
            others = [Caller(server.name, f"full-{number}").__enter__() for number in range(4)]
            held = [pool.submit(other.forward) for other in others]
            gate.wait_until_entered()
            poll(lambda: server.metric("teacher_in_flight") == 4, "every permit is taken")
            requests = {
                "Enroll": verbs.EnrollRequest("late"),
                "Forward": forward_request(caller.session),
                "Backward": verbs.BackwardRequest(caller.session),
                "Step": verbs.StepRequest(caller.session, 1, 0.1),
                "Export": verbs.ExportRequest(caller.session),
                "Import": verbs.ImportRequest(caller.session),
            }
            for method, request in requests.items():
                with pytest.raises(grpc.RpcError) as failure:
                    channel.unary_unary(f"/teaching_protocol.v1.Teacher/{method}")(write(request), timeout=10)
                assert dict(failure.value.trailing_metadata())[ERROR_KEY] == "Overloaded", method
            gate.open()
            for future, other in zip(held, others, strict=True):
                future.result(20)
                other.__exit__()


def test_what_can_never_fit_is_refused_at_once(crowded: dict[str, Address]) -> None:
    with Caller(crowded["few"].name, "large") as caller:
        for shape, sentence in (
            ((17, 4, WIDTH), "rows: received 17, accepted are 1 to 16"),
            ((4, 33, WIDTH), "message tokens: received 33, accepted are 1 to 32"),
        ):
            with pytest.raises(InvalidSetting, match=sentence):
                caller.forward(inputs={"message": torch.zeros(*shape)})


def test_quotas_by_name(crowded: dict[str, Address]) -> None:
    server = crowded["quotas"].name
    with Caller(server, "slow-ann") as slow, Caller(server, "fast") as fast:
        inputs = {"message": torch.zeros(8, 16, WIDTH)}  # 128 tokens, over the burst of 80
        slow.forward(inputs=inputs)
        with pytest.raises(QuotaExceeded, match="may use 40 tokens a second") as failure:
            slow.teacher.forward(forward_request(slow.session, inputs=inputs), in_s(0.5))
        assert 0.3 < failure.value.retry_after_s <= 1.2
        for _ in range(5):
            fast.forward(inputs=inputs)
        started = time.monotonic()
        slow.forward(inputs=inputs)  # the client waits as long as it was told
        assert time.monotonic() - started > failure.value.retry_after_s / 2


def enroll(server: str, student: str, **settings: Any) -> None:
    caller = Caller(server, student, **settings)
    try:
        caller.teacher.enroll(verbs.EnrollRequest(student, caller.settings), in_s(1))
    finally:
        caller.teacher.close()


def test_sessions_and_bytes_by_name(crowded: dict[str, Address]) -> None:
    server = crowded["quotas"].name
    with Caller(server, "team-1", codec_depth=1) as first, Caller(server, "other"):
        error = attempt(lambda: enroll(server, "team-2", codec_depth=2, message_width=32))
        assert isinstance(error, QuotaExceeded | InvalidSetting)
        assert re.search(r"'team-\*' .*ask for a smaller codec", str(error))
        with Caller(server, "team-3", codec_depth=1):
            error = attempt(lambda: enroll(server, "team-4", codec_depth=1))
        assert isinstance(error, QuotaExceeded)
        assert "have 2 sessions, the quota is 2" in str(error)
        assert first.forward()[1].outputs


def test_one_session_has_a_bounded_number_of_open_calls(crowded: dict[str, Address]) -> None:
    server = crowded["quotas"]
    with Caller(server.name, "many") as caller, grpc.insecure_channel(server.name) as channel:
        raw = channel.unary_unary("/teaching_protocol.v1.Teacher/Forward")
        calls: list[Any] = [raw.future(write(forward_request(caller.session)), timeout=30) for _ in range(300)]
        codes = [call.code() for call in calls]
        refused = [call for call in calls if call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED]
        assert codes.count(grpc.StatusCode.OK) >= 16
        assert codes.count(grpc.StatusCode.OK) + len(refused) == 300
        assert all(dict(call.trailing_metadata())[ERROR_KEY] == "QuotaExceeded" for call in refused)
        poll(lambda: caller.forward()[1].outputs, "afterwards it is served as before")
