"""Sizes that a hostile client claims or unfolds, against a server in a process of its own whose memory is watched."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
import torch

from teaching_protocol import verbs
from teaching_protocol.channel import error_from
from teaching_protocol.errors import InvalidSetting, InvalidTensor, StateMismatch, TeachingError
from teaching_protocol.v1 import teacher_pb2 as pb
from teaching_protocol.v1 import tensor_pb2
from teaching_protocol.wire import METHODS
from tests.calls import Caller, attempt, forward_request, good_step, in_s
from tests.integration.processes import Address, ServerProcess

LIMIT = 16 * 2**20
ROOM = 96 * 2**20  # a few copies of the largest message


@pytest.fixture(scope="module")
def served(model_folder: Callable[[str], Path]) -> Iterator[tuple[Address, psutil.Process]]:
    process = ServerProcess({"one": {"model": str(model_folder("bert")), "metrics_port": -1, "message_bytes": LIMIT}})
    yield process.addresses["one"], psutil.Process(process.process.pid)
    assert process.close() == 0


@pytest.fixture(autouse=True)
def _memory_stays_where_it_was(
    served: tuple[Address, psutil.Process], expected: dict[str, torch.Tensor]
) -> Iterator[None]:
    address, process = served
    good_step(address.name, "warm")
    before = process.memory_info().rss
    yield
    assert process.memory_info().rss - before < ROOM
    got = good_step(address.name, "good")
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, atol=1e-5, rtol=1e-5)


def send(address: Address, method: str, data: bytes, **options: Any) -> Any:
    """The reply's bytes, the error of the tree, or else gRPC's own code."""
    sizes = [("grpc.max_send_message_length", -1), ("grpc.max_metadata_size", 2**20)]
    with grpc.insecure_channel(address.name, options=sizes) as channel:
        path = next(each.path for each in METHODS if each.name == method)
        try:
            return channel.unary_unary(path)(data, timeout=30, **options)
        except grpc.RpcError as failure:
            error: Any = failure
            return error_from(error.trailing_metadata() or (), error.details()) or error.code()


@pytest.mark.parametrize("times", [2, 60])
def test_a_message_that_unfolds_is_refused_where_it_passes_the_limit(
    times: int, served: tuple[Address, psutil.Process]
) -> None:
    data = bytes(times * LIMIT)  # a thousandth of that as gzip
    assert send(served[0], "Forward", data, compression=grpc.Compression.Gzip) is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_a_good_message_may_be_gzip(served: tuple[Address, psutil.Process]) -> None:
    assert isinstance(send(served[0], "Describe", b"", compression=grpc.Compression.Gzip), bytes)


HUGE: dict[str, tuple[str, bytes]] = {
    "millions of fields": ("Forward", b"\x1a\x00" * 4_000_000),
    "millions of tensors": ("Forward", b"\x32\x00" * 4_000_000),
    "one tensor many times": (
        "Forward", pb.ForwardRequest(inputs={"m": tensor_pb2.Tensor(dtype=1, shape=[1], data=b"\0" * 4)}).SerializeToString() * 1000),
    "millions of dimensions": (
        "Forward", pb.ForwardRequest(inputs={"m": tensor_pb2.Tensor(dtype=1, shape=[0] * 8_000_000)}).SerializeToString()),
    "a call id of megabytes": ("Forward", pb.ForwardRequest(call_id="x" * 8_000_000).SerializeToString()),
    "a port's name of megabytes": (
        "Forward", pb.ForwardRequest(inputs={"m" * 8_000_000: tensor_pb2.Tensor(dtype=1)}).SerializeToString()),
    "a session id of megabytes": ("Renew", pb.RenewRequest(session={"session_id": "x" * 8_000_000}).SerializeToString()),
}  # fmt: skip


@pytest.mark.parametrize("name", HUGE)
def test_messages_that_are_huge_in_what_they_hold(name: str, served: tuple[Address, psutil.Process]) -> None:
    method, data = HUGE[name]
    began = time.monotonic()
    assert isinstance(send(served[0], method, data), InvalidTensor)
    assert time.monotonic() - began < 5.0


def test_ids_and_names_are_short(served: tuple[Address, psutil.Process]) -> None:
    with Caller(served[0].name, "long") as caller:
        ref, teacher = caller.session, caller.teacher
        long = "x" * 129
        tries: list[Callable[[], Any]] = [
            lambda: teacher.forward(forward_request(ref, call_id=long), in_s(9)),
            lambda: teacher.backward(verbs.BackwardRequest(ref, long, "f", {"answer": torch.ones(1)}), in_s(9)),
            lambda: teacher.backward(verbs.BackwardRequest(ref, "c", long, {"answer": torch.ones(1)}), in_s(9)),
            lambda: teacher.enroll(verbs.EnrollRequest("other", caller.settings, call_id=long), in_s(9)),
            lambda: teacher.enroll(verbs.EnrollRequest(long, caller.settings), in_s(9)),
        ]
        for each in tries:
            found = attempt(each)
            assert isinstance(found, InvalidSetting)
            assert "129 characters" in str(found)


STATES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "a header of exabytes": (lambda state: b"\xff" * 8 + state[8:], "a header of 18446744073709551615 bytes"),
    "a header of megabytes": (lambda state: (2**23).to_bytes(8, "little") + b" " * 2**23, "a header of 8388608 bytes"),
    "a state of another size": (lambda state: state + bytes(8 * 2**20), "this session's has"),
}


@pytest.mark.parametrize("name", STATES)
def test_states_are_measured_before_they_are_read(name: str, served: tuple[Address, psutil.Process]) -> None:
    change, sentence = STATES[name]
    with Caller(served[0].name, "states") as caller:
        state = caller.export()
        for found in (
            attempt(lambda: caller.teacher.import_(verbs.ImportRequest(caller.session, change(state)), in_s(9))),
            attempt(
                lambda: caller.teacher.enroll(verbs.EnrollRequest("o", caller.settings, state=change(state)), in_s(9))
            ),
        ):
            assert isinstance(found, StateMismatch)
            assert sentence in str(found)
        assert caller.export() == state


def test_no_error_shows_a_path_or_a_stack(served: tuple[Address, psutil.Process]) -> None:
    """Whatever goes wrong, what a stranger reads has no file name of the server, no stack and no memory address."""
    said = []
    for method in METHODS:
        for data in (b"\xff" * 9, b"\x0a\x02\x0a\x00", b"\x12\x02\xc3\x28", bytes(range(256))):
            found = send(served[0], method.name, data)
            said += [str(found)] if isinstance(found, TeachingError) else []
    assert len(said) > 20
    for text in said:
        assert not any(
            sign in text for sign in ("/root", "/usr", ".py", "Traceback", 'File "', " object at 0x", "line ")
        )
