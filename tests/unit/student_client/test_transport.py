"""The transport against real gRPC servers whose answers the test chooses: retry, deadline, typed errors."""

from __future__ import annotations

import itertools
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
import pytest
import torch

from student_client.connection.transport import GrpcTransport
from teacher_server.describing import ask_for_card
from teaching_protocol import verbs
from teaching_protocol.channel import error_metadata
from teaching_protocol.errors import (
    ERRORS,
    CallCancelled,
    DeadlineExceeded,
    InternalError,
    InvalidTensor,
    MessageTooLarge,
    Overloaded,
    QuotaExceeded,
    SharedMemoryLost,
    TeacherUnavailable,
    TeachingError,
)
from teaching_protocol.verbs import Call
from teaching_protocol.wire import METHODS, SERVICE, read, write

Answer = Callable[[bytes, grpc.ServicerContext], bytes]


@contextmanager
def peer(answer: Answer, service: str = SERVICE) -> Iterator[str]:
    """A gRPC server that answers every RPC of the service so."""
    with ThreadPoolExecutor(4) as pool:
        server = grpc.server(pool)
        handlers: Any = {method.name: grpc.unary_unary_rpc_method_handler(answer) for method in METHODS}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            yield f"127.0.0.1:{port}"
        finally:
            server.stop(0).wait()


@contextmanager
def transport(address: str, **options: Any) -> Iterator[GrpcTransport]:
    found = GrpcTransport(address, **options)
    try:
        yield found
    finally:
        found.close()


def refusing(*errors: TeachingError) -> tuple[Answer, list[float]]:
    """Refuses with one error after another, then answers a Renew; notes when it was asked."""
    left, times = list(errors), []

    def answer(data: bytes, context: grpc.ServicerContext) -> bytes:
        times.append(time.monotonic())
        if left:
            error = left.pop(0)
            context.set_trailing_metadata(error_metadata(error))
            context.abort(grpc.StatusCode[error.status], str(error))
        return write(verbs.RenewReply(60.0))

    return answer, times


def renew(found: GrpcTransport, seconds: float = 5.0) -> verbs.RenewReply:
    return found.renew(verbs.RenewRequest(), Call(time.monotonic() + seconds))


def test_an_overload_is_tried_again_when_the_server_said() -> None:
    answer, times = refusing(Overloaded("full", 0.2), Overloaded("full", 0.1))
    with peer(answer) as address, transport(address) as found:
        assert renew(found).lease_s == 60
    assert times[1] - times[0] >= 0.2
    assert times[2] - times[1] >= 0.1


@pytest.mark.parametrize("error", [Overloaded, QuotaExceeded])
def test_no_retry_comes_early_and_they_spread_more_and_more(error: type[Overloaded]) -> None:
    answer, times = refusing(*[error("full", 0.05)] * 4)
    with peer(answer) as address, transport(address) as found:
        assert renew(found, 20.0).lease_s == 60
    gaps = [after - before for before, after in itertools.pairwise(times)]
    assert len(gaps) == 4
    for number, gap in enumerate(gaps):
        assert 0.05 <= gap < 0.05 + 0.05 * 2**number + 0.5


def test_an_overload_beyond_the_deadline_is_raised_before_it() -> None:
    answer, times = refusing(*[Overloaded("full", 0.1)] * 100)
    with peer(answer) as address, transport(address) as found:
        started = time.monotonic()
        with pytest.raises(Overloaded, match="full") as failure:
            renew(found, 0.4)
        assert time.monotonic() - started < 0.6
    assert failure.value.retry_after_s == 0.1
    assert len(times) > 1


@pytest.mark.parametrize(
    "name", sorted(set(ERRORS) - {"Overloaded", "QuotaExceeded", "SharedMemoryLost", "TeacherUnavailable"})
)
def test_every_other_error_is_raised_as_its_class_at_once(name: str) -> None:
    answer, times = refusing(ERRORS[name]("what was received; what to do — größer"))
    with (
        peer(answer) as address,
        transport(address) as found,
        pytest.raises(TeachingError, match="what was received; what to do — größer") as failure,
    ):
        renew(found)
    assert type(failure.value) is ERRORS[name]
    assert len(times) == 1


@pytest.mark.parametrize("error", [TeacherUnavailable("restarting"), SharedMemoryLost("send the message itself")])
def test_a_teacher_that_comes_back_within_the_patience(error: TeachingError) -> None:
    answer, times = refusing(error)
    with peer(answer) as address, transport(address) as found:
        assert renew(found).lease_s == 60
    assert len(times) == 2


@pytest.mark.parametrize(("patience_s", "deadline_s"), [(0.3, 20.0), (20.0, 0.3)])
def test_nobody_there(patience_s: float, deadline_s: float) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, but nobody listens
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with transport(address, patience_s=patience_s) as found:
            started = time.monotonic()
            with pytest.raises(
                TeacherUnavailable, match=f"no teacher answers at {address} .*start one there, or check"
            ):
                renew(found, deadline_s)
    assert time.monotonic() - started < 1.5


def test_a_peer_that_does_not_answer_in_time() -> None:
    def answer(data: bytes, context: grpc.ServicerContext) -> bytes:
        while context.is_active():
            time.sleep(0.01)
        return b""

    with peer(answer) as address, transport(address) as found:
        started = time.monotonic()
        with pytest.raises(DeadlineExceeded, match=f"at {address} did not answer in time; .*raise deadline_s"):
            renew(found, 0.2)
        assert time.monotonic() - started < 1.5


def test_other_peers_and_other_failures() -> None:
    def untyped(code: grpc.StatusCode, text: str) -> Answer:
        def answer(data: bytes, context: grpc.ServicerContext) -> bytes:
            context.abort(code, text)
            raise AssertionError

        return answer

    sentence = "is no teacher of this protocol"
    with peer(untyped(grpc.StatusCode.OK, ""), "other.Service") as address, transport(address) as found:  # noqa: SIM117
        with pytest.raises(InternalError, match=sentence):
            renew(found)
    table: list[tuple[grpc.StatusCode, str, type[TeachingError]]] = [
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "Received message larger than max (9 vs. 4)", MessageTooLarge),
        (grpc.StatusCode.CANCELLED, "gone", CallCancelled),
        (grpc.StatusCode.PERMISSION_DENIED, "no", InternalError),
    ]
    for code, text, error in table:
        with peer(untyped(code, text)) as address, transport(address) as found, pytest.raises(error):
            renew(found)


def test_a_reply_that_is_none() -> None:
    sentence = "the bytes received are no RenewReply"
    with peer(lambda data, context: b"\xff\xff") as address, transport(address) as found:  # noqa: SIM117
        with pytest.raises(InvalidTensor, match=sentence):
            renew(found)


def test_what_is_too_large_is_not_sent() -> None:
    answer, times = refusing()
    request = verbs.ForwardRequest(inputs={"message": torch.zeros(100, 100)})
    with peer(answer) as address, transport(address, compression="none") as found:
        found.message_bytes = 10_000
        with pytest.raises(MessageTooLarge, match=r"ForwardRequest is 40.* bytes, the limit is 10000; send fewer"):
            found.forward(request, Call(time.monotonic() + 5))
    assert times == []


@pytest.mark.parametrize(("compression", "dtype"), [("bf16", torch.bfloat16), ("none", torch.float32)])
def test_every_verb_reaches_its_rpc_compressed_as_asked(compression: str, dtype: torch.dtype) -> None:
    seen: list[torch.dtype] = []

    def answer(data: bytes, context: grpc.ServicerContext) -> bytes:
        if not seen:
            seen.extend(tensor.dtype for tensor in read(verbs.ForwardRequest, data).inputs.values())
        return b""

    with peer(answer) as address, transport(address, compression=compression) as found:
        call = Call(time.monotonic() + 20)
        inputs = {"message": torch.zeros(1, 1, 1), "input_ids": torch.zeros(1, 1, dtype=torch.int64)}
        assert found.forward(verbs.ForwardRequest(inputs=inputs), call) == verbs.ForwardReply(outputs={})
        assert seen == [dtype, torch.int64]
        for method in METHODS:
            assert type(getattr(found, method.verb)(method.request(), call)) is method.reply


def test_a_call_after_close_is_an_error_of_the_tree() -> None:
    found = GrpcTransport("127.0.0.1:1")
    found.close()
    with pytest.raises(TeachingError):
        renew(found)


def test_a_web_server_is_told_from_a_teacher_that_is_away() -> None:
    """As where the port of the status page is given: both sides' commands say which port is meant."""

    class Quiet(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None: ...

    web = ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
    thread = threading.Thread(target=web.serve_forever)
    thread.start()
    address = f"127.0.0.1:{web.server_port}"
    try:
        with (
            transport(address, patience_s=0.0) as found,
            pytest.raises(TeacherUnavailable, match="another kind of server does"),
        ):
            renew(found)
        with pytest.raises(TeacherUnavailable, match="another kind of server does"):
            ask_for_card(address, 5.0, None, None, None)
    finally:
        web.shutdown()
        thread.join()
        web.server_close()
