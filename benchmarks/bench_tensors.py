"""A tensor there and back: over gRPC, through shared memory and plain protobuf, against raw sockets and memcpy, by size.

A raw frame is a header joined with the tensor's own memory, read in place at both ends: the most that gRPC gives to who
knows no message. Ready bytes are not even that: nothing is packed and nothing is read.
"""

# ruff: noqa: E402
from __future__ import annotations

from teaching_protocol.memory import OFF_SWITCH, keep_freed_memory

keep_freed_memory()  # before anything starts a thread, as the commands do; not if the environment says otherwise

import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Thread
from typing import Any

import grpc
import torch

sys.path.insert(0, str(Path(__file__).parent))

from processes import started
from recording import Record, parser

from student_client.connection.transport import GrpcTransport
from teacher_server.config import ServerConfig
from teacher_server.live import LiveSettings
from teacher_server.metrics.metrics import Metrics
from teacher_server.serving.same_host import SameHost
from teacher_server.serving.service import add_service
from teacher_server.sessions.sessions import Sessions
from teaching_protocol import verbs
from teaching_protocol.channel import channel_options, server_options
from teaching_protocol.v1 import teacher_pb2

LIMIT = 2**31 - 1
SIZES = {"64K": 2**16, "1M": 2**20, "4M": 2**22, "16M": 2**24, "64M": 2**26}
TARGETS = {"gRPC": (1.7, 2**20), "shared memory": (5.0, 2**20)}  # GB/s, from this size on
OVER_FRAME = 0.9  # of a raw frame's speed, from 1M on
FRAME = b"tensor f32 [n]  "  # stands for a dtype and a shape
Rates = dict[str, dict[str, float]]


class Echo:
    """A teacher that answers Forward with its inputs, behind the product's own service."""

    def __init__(self) -> None:
        self.card, self.sessions = verbs.DescribeReply(), Sessions(60.0, lambda: 1)

    def describe(self, request: verbs.DescribeRequest, call: verbs.Call) -> verbs.DescribeReply:
        return self.card

    def forward(self, request: verbs.ForwardRequest, call: verbs.Call) -> verbs.ForwardReply:
        return verbs.ForwardReply(outputs=request.inputs)

    def __getattr__(self, verb: str) -> None:
        return None


def serve_echo() -> None:
    """All echo servers in this process: the product's service, plain protobuf, ready bytes, and two raw sockets."""

    def plain(data: bytes, context: grpc.ServicerContext) -> bytes:
        request = teacher_pb2.ForwardRequest.FromString(data)
        reply = teacher_pb2.ForwardReply()
        reply.outputs["x"].CopyFrom(request.inputs["x"])
        return reply.SerializeToString()

    same_host = SameHost(2**30, 8)
    same_host.start()
    server = grpc.server(ThreadPoolExecutor(4), options=server_options(LIMIT))
    add_service(server, Echo(), Metrics(), LiveSettings(ServerConfig(model="echo", message_bytes=LIMIT)), same_host)  # type: ignore[arg-type]
    handlers = {
        "Plain": grpc.unary_unary_rpc_method_handler(plain),
        "Ready": grpc.unary_unary_rpc_method_handler(lambda data, context: data),
        "Frame": grpc.unary_unary_rpc_method_handler(lambda data, context: framed(unframed(data))),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("echo", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    tcp, unix = socket.create_server(("127.0.0.1", 0)), socket.socket(socket.AF_UNIX)
    unix.bind(f"\0bench-tensors-{os.getpid()}")
    unix.listen()
    for listener in (tcp, unix):
        Thread(target=echo_raw, args=(listener,), daemon=True).start()
    print(port, tcp.getsockname()[1], os.getpid(), flush=True)
    server.wait_for_termination()


def framed(tensor: torch.Tensor) -> bytes:
    return b"".join((FRAME, tensor.numpy().data.cast("B")))


def unframed(data: bytes) -> torch.Tensor:
    return torch.frombuffer(data, dtype=torch.float32, offset=len(FRAME))


def echo_raw(listener: socket.socket) -> None:
    peer, _ = listener.accept()
    if peer.family == socket.AF_INET:
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    head, buffer = memoryview(bytearray(8)), memoryview(bytearray(max(SIZES.values())))
    while size := int.from_bytes(received(peer, head), "little"):
        peer.sendall(received(peer, buffer[:size]))


def received(peer: socket.socket, buffer: memoryview) -> memoryview:
    view = buffer
    while view:
        count = peer.recv_into(view)
        if not count:
            return memoryview(bytes(8))
        view = view[count:]
    return buffer


class Ways:
    """Each way to send a tensor there and back, all against one echo process."""

    def __init__(self, port: int, tcp_port: int, pid: int) -> None:
        self.transports = [GrpcTransport(f"127.0.0.1:{port}", "none", shared_memory=each) for each in (False, True)]
        for transport in self.transports:
            transport.describe(verbs.DescribeRequest(), verbs.Call(time.monotonic() + 60))
        channel = grpc.insecure_channel(f"127.0.0.1:{port}", options=channel_options(LIMIT))
        self.stubs = {name: channel.unary_unary(f"/echo/{name}") for name in ("Ready", "Frame", "Plain")}
        tcp, unix = socket.create_connection(("127.0.0.1", tcp_port)), socket.socket(socket.AF_UNIX)
        tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        unix.connect(f"\0bench-tensors-{pid}")
        self.sockets = [tcp, unix]
        self.buffer = torch.empty(max(SIZES.values()) // 4)

    def calls(self, tensor: torch.Tensor) -> dict[str, Callable[[], torch.Tensor]]:
        """By name: what sends this tensor and gives the one that came back."""
        ready = tensor.numpy().tobytes()
        return {
            "gRPC": lambda: self.ours(self.transports[0], tensor),
            "shared memory": lambda: self.ours(self.transports[1], tensor),
            "gRPC, raw frame": lambda: unframed(self.stubs["Frame"](framed(tensor))),
            "gRPC, ready bytes": lambda: torch.frombuffer(self.stubs["Ready"](ready), dtype=torch.float32),
            "gRPC, protobuf's own": lambda: self.plain(tensor),
            "raw TCP": lambda: self.raw(self.sockets[0], tensor),
            "raw unix socket": lambda: self.raw(self.sockets[1], tensor),
            "memcpy": lambda: tensor.copy_(self.buffer[: len(tensor)].copy_(tensor)),
        }

    def ours(self, transport: GrpcTransport, tensor: torch.Tensor) -> torch.Tensor:
        request = verbs.ForwardRequest(inputs={"x": tensor})
        return transport.forward(request, verbs.Call(time.monotonic() + 60)).outputs["x"]

    def plain(self, tensor: torch.Tensor) -> torch.Tensor:
        request = teacher_pb2.ForwardRequest()
        request.inputs["x"].dtype = 1  # type: ignore[assignment]
        request.inputs["x"].shape.append(len(tensor))
        request.inputs["x"].data = tensor.numpy().tobytes()
        reply = teacher_pb2.ForwardReply.FromString(self.stubs["Plain"](request.SerializeToString()))
        return torch.frombuffer(reply.outputs["x"].data, dtype=torch.float32)

    def raw(self, peer: socket.socket, tensor: torch.Tensor) -> torch.Tensor:
        peer.sendall(tensor.nbytes.to_bytes(8, "little"))
        peer.sendall(tensor.numpy().data.cast("B"))
        found = self.buffer[: len(tensor)]
        received(peer, found.numpy().data.cast("B"))
        return found


def seconds(call: Callable[[], object]) -> float:
    started_at = time.perf_counter()
    call()
    return time.perf_counter() - started_at


def measure(addresses: list[int], rounds: int) -> dict[str, Any]:
    """GB/s by way and size; the order of the ways turns from round to round."""
    ways, rates = Ways(*addresses), {}
    for name, size in SIZES.items():
        tensor = torch.randn(size // 4)
        calls = ways.calls(tensor)
        for way, call in calls.items():
            assert torch.equal(call(), tensor), way
        times: dict[str, list[float]] = {way: [] for way in calls}
        order = list(calls)
        for _ in range(rounds):
            for way in order:
                times[way].append(seconds(calls[way]))
            order.append(order.pop(0))
        rates[name] = {way: 2 * size / statistics.median(column) / 1e9 for way, column in times.items()}
    return {"rates": rates, "shared": ways.transports[1].bytes_shared > 0}


def show(found: dict[str, Any], kept: bool, record: Record) -> None:
    title = "malloc as the commands set it" if kept else "malloc's own settings"
    print(f"{title}, GB/s there and back" + ("" if found["shared"] else "; NO MEMORY WAS SHARED HERE"))
    rates: Rates = found["rates"]
    record.table(title, [{"size": name} | row for name, row in rates.items()])
    if kept:
        record.table(
            "over raw",
            [
                {"ratio": f"{way} / {other}"} | {name: row[way] / row[other] for name, row in rates.items()}
                for way in TARGETS
                for other in ("gRPC, raw frame", "raw TCP", "raw unix socket", "memcpy")
            ],
        )
        large = [row for name, row in rates.items() if SIZES[name] >= TARGETS["gRPC"][1]]
        slowest = min(row["gRPC"] / row["gRPC, raw frame"] for row in large)
        record.target("gRPC / raw frame, at the least from 1M on", slowest, at_least=OVER_FRAME)
        for way, (target, least) in TARGETS.items():
            slowest = min(row[way] for name, row in rates.items() if SIZES[name] >= least)
            record.target(f"{way}, GB/s at the least from 1M on", slowest, at_least=target)


def plot(found: dict[str, Any], record: Record) -> None:
    figure, axes = record.axes()
    rates: Rates = found["rates"]
    for way in rates["64K"]:
        ours = way in TARGETS
        axes.plot(
            list(rates), [row[way] for row in rates.values()], "o-" if ours else "o--", lw=2.5 if ours else 1, label=way
        )
    for way, (target, _) in TARGETS.items():
        axes.axhline(target, color="grey", lw=0.8, ls=":", label=f"target of {way}: {target} GB/s")
    axes.set(
        yscale="log", xlabel="tensor, bytes", ylabel="GB/s, there and back", title="A tensor there and back on one host"
    )
    axes.legend(fontsize=7)
    record.plot(figure)


def main() -> None:
    flags = parser(__doc__)
    flags.add_argument("--echo", action="store_true", help="be the echo server (used by itself)")
    flags.add_argument("--measure", metavar="ADDRESSES", help="measure against a running echo server (used by itself)")
    flags.add_argument("--rounds", type=int, default=15)
    arguments = flags.parse_args()
    torch.set_num_threads(1)
    if arguments.echo:
        serve_echo()
    if arguments.measure:
        print(json.dumps(measure([int(each) for each in arguments.measure.split()], arguments.rounds)))
        return
    with Record("tensors", arguments) as record:
        for kept in (False, True):  # malloc's settings hold for a whole process: new ones for each
            os.environ[OFF_SWITCH] = str(int(kept))
            with started(__file__, "--echo") as line:
                command = [
                    sys.executable,
                    "-W",
                    "ignore",
                    __file__,
                    "--measure",
                    line,
                    "--rounds",
                    str(arguments.rounds),
                ]
                found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
            show(found, kept, record)
        plot(found, record)


if __name__ == "__main__":
    main()
