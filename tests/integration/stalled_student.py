"""A client that asks for large replies and stops reading them: stops its own process (SIGSTOP) once all are asked for.

argv: address, student name, number of calls.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

import grpc
import torch

from teaching_protocol.wire import write
from tests.calls import Caller, forward_request

WIDTH, ROWS, TOKENS = 2048, 4, 32

if __name__ == "__main__":
    address, name, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
    caller = Caller(address, name, message_width=WIDTH).__enter__()
    channel: Any = grpc.insecure_channel(address, options=[("grpc.max_receive_message_length", -1)])
    inputs = {"message": torch.zeros(ROWS, TOKENS, WIDTH)}
    stub = channel.unary_unary("/teaching_protocol.v1.Teacher/Forward")
    calls = [stub.future(write(forward_request(caller.session, inputs=inputs)), timeout=300) for _ in range(count)]
    print("stopping", flush=True)  # noqa: T201
    os.kill(os.getpid(), signal.SIGSTOP)
