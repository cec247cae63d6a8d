"""A tensor there and back over gRPC as this project packs it, against a raw TCP socket, by size."""

from __future__ import annotations

import argparse
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import torch

sys.path.insert(0, str(Path(__file__).parent))

from processes import started

from teaching_protocol import verbs
from teaching_protocol.channel import channel_options, server_options
from teaching_protocol.memory import keep_freed_memory
from teaching_protocol.v1 import teacher_pb2
from teaching_protocol.wire import read, write

LIMIT = 2**31 - 1
SIZES = {"64 KB": 2**16, "1 MB": 2**20, "4 MB": 2**22, "16 MB": 2**24, "64 MB": 2**26}


def serve_echo() -> None:
    """Two echo servers in this process: gRPC with our packing, and with plain protobuf; and a raw socket."""

    def ours(data: bytes, context: grpc.ServicerContext) -> bytes:
        request = read(verbs.ForwardRequest, data)
        return write(verbs.ForwardReply(outputs=request.inputs))

    def plain(data: bytes, context: grpc.ServicerContext) -> bytes:
        request = teacher_pb2.ForwardRequest.FromString(data)
        reply = teacher_pb2.ForwardReply()
        reply.outputs["x"].CopyFrom(request.inputs["x"])
        return reply.SerializeToString()

    server = grpc.server(ThreadPoolExecutor(2), options=server_options(LIMIT))
    handlers = {"Ours": grpc.unary_unary_rpc_method_handler(ours), "Plain": grpc.unary_unary_rpc_method_handler(plain)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("echo", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    listener = socket.create_server(("127.0.0.1", 0))
    print(port, listener.getsockname()[1], flush=True)
    peer, _ = listener.accept()
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    while True:
        size = int.from_bytes(received(peer, bytearray(8)), "little")
        if not size:
            break
        peer.sendall(received(peer, bytearray(size)))
    server.wait_for_termination()


def received(peer: socket.socket, buffer: bytearray) -> bytearray:
    view = memoryview(buffer)
    while view:
        count = peer.recv_into(view)
        if not count:
            return bytearray(8)
        view = view[count:]
    return buffer


def seconds(call: Callable[[], object]) -> float:
    started_at = time.perf_counter()
    call()
    return time.perf_counter() - started_at


def measure(port: int, raw_port: int, rounds: int) -> None:
    channel = grpc.insecure_channel(f"127.0.0.1:{port}", options=channel_options(LIMIT))
    raw = socket.create_connection(("127.0.0.1", raw_port))
    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    ours_stub, plain_stub = (channel.unary_unary(f"/echo/{name}") for name in ("Ours", "Plain"))
    print(f"{'size':>6} {'ours GB/s':>10} {'protobuf GB/s':>14} {'raw GB/s':>9} {'ours/raw':>9} {'ours/protobuf':>14}")
    for name, size in SIZES.items():
        tensor = torch.randn(size // 4)
        buffer = bytearray(size)

        def ours(tensor: torch.Tensor = tensor) -> object:
            reply = ours_stub(write(verbs.ForwardRequest(inputs={"x": tensor})))
            return read(verbs.ForwardReply, reply).outputs["x"]

        def plain(tensor: torch.Tensor = tensor) -> object:
            request = teacher_pb2.ForwardRequest()
            request.inputs["x"].dtype = 1
            request.inputs["x"].shape.append(len(tensor))
            request.inputs["x"].data = tensor.numpy().tobytes()
            reply = teacher_pb2.ForwardReply.FromString(plain_stub(request.SerializeToString()))
            return torch.frombuffer(bytearray(reply.outputs["x"].data), dtype=torch.float32)

        def socket_only(tensor: torch.Tensor = tensor, buffer: bytearray = buffer) -> object:
            raw.sendall((4 * tensor.numel()).to_bytes(8, "little"))
            raw.sendall(tensor.numpy().data)
            return torch.frombuffer(received(raw, buffer), dtype=torch.float32)

        calls = (ours, plain, socket_only)
        for call in calls:
            call()
        times: list[list[float]] = [[], [], []]
        for number in range(rounds):
            for place in sorted(range(3), key=lambda index: (index + number) % 3):
                times[place].append(seconds(calls[place]))
        rates = [2 * size / statistics.median(column) / 1e9 for column in times]
        print(
            f"{name:>6} {rates[0]:>10.2f} {rates[1]:>14.2f} {rates[2]:>9.2f} "
            f"{rates[0] / rates[2]:>9.2f} {rates[0] / rates[1]:>14.2f}"
        )
    raw.sendall(bytes(8))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--echo", action="store_true", help="be the echo server")
    parser.add_argument("--measure", metavar="PORTS", help="measure against a running echo server")
    parser.add_argument("--keep", action="store_true", help="call keep_freed_memory first, as the commands do")
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    if arguments.keep:
        keep_freed_memory()
    if arguments.echo:
        serve_echo()
    elif arguments.measure:
        measure(*map(int, arguments.measure.split()), arguments.rounds)
    else:
        for flags in ([], ["--keep"]):  # malloc's settings hold for a whole process: new ones for each
            with started(__file__, "--echo", *flags) as line:
                print("keep_freed_memory in both processes" if flags else "glibc's own malloc settings", flush=True)
                command = [sys.executable, __file__, "--measure", line, "--rounds", str(arguments.rounds), *flags]
                subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
