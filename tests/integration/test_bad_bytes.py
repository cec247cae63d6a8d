"""Bytes that are no good message: too many, too few, falsely claimed, unreadable."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
import torch

from teaching_protocol import verbs
from teaching_protocol.channel import error_from
from teaching_protocol.errors import InvalidTensor, MessageTooLarge, StateMismatch, TeachingError, UnknownPort
from teaching_protocol.v1 import teacher_pb2 as pb
from tests.calls import WIDTH, Caller, in_s
from tests.integration.processes import Address

pytestmark = pytest.mark.usefixtures("next_student_is_served")


def test_message_over_the_limit_is_refused_on_both_sides(server: Address, caller: Caller) -> None:
    big = torch.zeros(16, 32, 64)  # 131 kB, the server's limit is 100 kB
    with pytest.raises(MessageTooLarge, match="send fewer rows or tokens"):
        caller.forward(inputs={"message": big})
    caller.teacher.message_bytes = server_limit = caller.teacher.describe(verbs.DescribeRequest(), in_s(5)).limits
    caller.teacher.message_bytes = server_limit.message_bytes
    with pytest.raises(MessageTooLarge, match=r"ForwardRequest is 131\d+ bytes, the limit is 100000"):
        caller.forward(inputs={"message": big})


def test_a_reply_over_the_limit_says_so(caller: Caller) -> None:
    ids = torch.full((16, 32), 5)
    with pytest.raises(MessageTooLarge, match=r"ForwardReply is .* bytes, the limit is 100000"):
        caller.forward(
            inputs={"input_ids": ids},
            outputs=tuple(f"hidden.{layer}" for layer in range(5)),
            grad_inputs=(),
            backward_follows=False,
        )


def typed(failure: pytest.ExceptionInfo[grpc.RpcError]) -> TeachingError:
    error: Any = failure.value
    found = error_from(error.trailing_metadata() or (), error.details())
    assert found is not None, f"no typed error: {error.code()} {error.details()}"
    assert error.code().name == found.status
    return found


def handmade(session: verbs.SessionRef, **tensor: Any) -> pb.ForwardRequest:
    request = pb.ForwardRequest(call_id="handmade", outputs=["answer"], backward_follows=True)
    request.session.session_id, request.session.epoch = session.session_id, session.epoch
    request.inputs["message"].CopyFrom(pb.teaching__protocol_dot_v1_dot_tensor__pb2.Tensor(**tensor))
    return request


BAD_TENSORS: dict[str, tuple[dict[str, Any], str]] = {
    "claims more bytes": ({"dtype": 1, "shape": [2, 3, WIDTH], "data": b"\0" * 8}, "is 192 bytes, but 8 were received"),
    "claims fewer bytes": ({"dtype": 1, "shape": [1, 1, 1], "data": b"\0" * 8}, "is 4 bytes, but 8 were received"),
    "claims an exabyte": ({"dtype": 1, "shape": [2**60, 3, WIDTH], "data": b""}, "but 0 were received"),
    "negative size": ({"dtype": 1, "shape": [-2, -3, WIDTH], "data": b"\0" * 192}, "negative size in shape"),
    "nothing in huge dimensions": ({"dtype": 1, "shape": [0, 2**62, 2**62], "data": b""}, "message: .*shape"),
    "nine dimensions": ({"dtype": 1, "shape": [1] * 9, "data": b"\0" * 4}, "9 dimensions; at most 8"),
    "no dtype": ({"shape": [2], "data": b"\0\0"}, "unknown dtype number 0"),
    "unknown dtype": ({"dtype": 77, "shape": [2], "data": b"\0\0"}, "unknown dtype number 77"),
}


@pytest.mark.parametrize("name", BAD_TENSORS)
def test_bad_tensor_on_the_wire(name: str, caller: Caller, server: Address) -> None:
    tensor, sentence = BAD_TENSORS[name]
    with pytest.raises(grpc.RpcError) as failure:
        server.raw("Forward", handmade(caller.session, **tensor).SerializeToString())
    error = typed(failure)
    assert isinstance(error, InvalidTensor)
    with pytest.raises(InvalidTensor, match=sentence):
        raise error


@pytest.mark.parametrize("data", [b"\xff" * 20, b"\x0a\x7f", b"\x12\x02\xc3\x28", b"\x32\x05\x0a\x03\x6d"])
def test_bytes_that_are_no_message(data: bytes, server: Address) -> None:
    with pytest.raises(grpc.RpcError) as failure:
        server.raw("Forward", data)
    assert isinstance(typed(failure), InvalidTensor)
    assert "the bytes received are no ForwardRequest" in str(typed(failure))


@pytest.mark.parametrize("letter", ["x", "%", "\U0001f600"], ids=["x", "percent", "smile"])
@pytest.mark.parametrize("size", [2_000, 20_000])
def test_a_long_name_still_gets_a_typed_error(letter: str, size: int, caller: Caller) -> None:
    with pytest.raises(UnknownPort, match=f"output port '{letter * 9}"):
        caller.forward(outputs=(letter * size,))


BAD_STATES = {
    "empty": lambda state: b" ",
    "garbage": lambda state: b"garbage" * 50,
    "truncated": lambda state: state[:-10],
    "truncated header": lambda state: state[:20],
    "pickle": lambda state: b"\x80\x04\x95" + b"\0" * 64,
}


@pytest.mark.parametrize("name", BAD_STATES)
def test_bad_state(name: str, server: Address, caller: Caller) -> None:
    good = caller.export()
    with pytest.raises(StateMismatch, match="bytes were received that are no exported session state"):
        caller.teacher.import_(verbs.ImportRequest(caller.session, BAD_STATES[name](good)), in_s(5))
    assert caller.export() == good
    state = BAD_STATES[name](good)
    with pytest.raises(StateMismatch):
        caller.teacher.enroll(verbs.EnrollRequest("other", caller.settings, state=state), in_s(5))
