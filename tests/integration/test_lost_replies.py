"""A network that loses the first reply to every call: the client asks again, the server acts once."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
import torch

from student_client import RemoteTeacher
from teaching_protocol.wire import METHODS, SERVICE, Method
from tests.calls import WIDTH
from tests.integration.processes import Address


@contextmanager
def losing(address: Address) -> Iterator[tuple[str, list[str]]]:
    """A proxy that passes every call on and loses each reply once; notes the replies it lost."""
    lost: list[str] = []
    seen: set[bytes] = set()

    with grpc.insecure_channel(address.name) as channel, ThreadPoolExecutor(4) as pool:

        def passing(method: Method) -> Any:
            ask: Any = channel.unary_unary(method.path)

            def answer(data: bytes, context: grpc.ServicerContext) -> bytes:
                try:
                    reply: bytes = ask(data, timeout=20)
                except grpc.RpcError as error:
                    refused: Any = error
                    context.set_trailing_metadata(refused.trailing_metadata())
                    context.abort(refused.code(), refused.details())
                if data not in seen:
                    seen.add(data)
                    lost.append(method.name)
                    context.abort(grpc.StatusCode.UNAVAILABLE, "the connection broke")
                return reply

            return grpc.unary_unary_rpc_method_handler(answer)

        server = grpc.server(pool)
        handlers = {method.name: passing(method) for method in METHODS}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            yield f"127.0.0.1:{port}", lost
        finally:
            server.stop(0).wait()


def train(address: str, student: str) -> tuple[bytes, list[torch.Tensor]]:
    grads = []
    with RemoteTeacher(address, student=student, message_width=WIDTH) as teacher:
        for step in range(3):
            message = torch.full((1, 2, WIDTH), step + 1.0).cumsum(2).sin().requires_grad_()
            teacher(message).pow(3).sum().backward()
            assert teacher.step(lr=0.1) > 0
            assert message.grad is not None
            grads.append(message.grad)
        state = teacher.export_state()
        teacher.import_state(state)
    return state, grads


def test_training_ends_with_the_same_bits(servers: dict[str, Address]) -> None:
    with losing(servers["bert"]) as (address, lost):
        state, grads = train(address, "unlucky")
    exact, exact_grads = train(servers["bert"].name, "lucky")
    assert {"Enroll", "Forward", "Backward", "Step", "Export", "Import"} <= set(lost)
    assert lost.count("Step") == 3
    assert state == exact
    assert all(torch.equal(one, other) for one, other in zip(grads, exact_grads, strict=True))
