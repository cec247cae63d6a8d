"""Conversations as bytes: what a client of one protocol version said and heard of every RPC, kept to be said again.

    python -m tests.integration.recording FOLDER

writes FOLDER/NN-Method.request and .reply, the protocol's own descriptors, and the tiny teacher that answered. It is run once
for a version; a later version is held against what was written then, and never the other way round.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import torch
from google.protobuf import descriptor_pb2
from transformers import BertConfig, BertModel

from teacher_server.app import TeacherApp
from teacher_server.config import ServerConfig
from teaching_protocol import verbs
from teaching_protocol.v1 import teacher_pb2, tensor_pb2
from teaching_protocol.wire import METHODS, read, write

__all__ = ["Line", "ask", "record", "serving"]

WIDTH, SMALL = 16, {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}


class Line:
    """One call of a recording, and where its session's id stands, which the server draws anew each time."""

    def __init__(self, path: Path) -> None:
        self.method = path.stem.partition("-")[2]
        self.request, self.reply = path.read_bytes(), path.with_suffix(".reply").read_bytes()

    @staticmethod
    def all(folder: Path) -> list[Line]:
        return [Line(path) for path in sorted(folder.glob("*.request"))]


@contextmanager
def serving(model: Path) -> Iterator[grpc.Channel]:
    """A real server with the recording's teacher, and a bare channel to it."""
    config = ServerConfig(model=str(model), port=0, metrics_port=-1, deterministic=True, shared_memory=False, threads=1)
    with TeacherApp(config) as app, grpc.insecure_channel(f"127.0.0.1:{app.port}") as channel:
        yield channel


def ask(channel: grpc.Channel, method: str, request: bytes) -> bytes:
    """The reply's bytes."""
    path = next(each.path for each in METHODS if each.name == method)
    reply: bytes = channel.unary_unary(path)(request, timeout=20)
    return reply


def conversation() -> Iterator[tuple[str, object]]:
    """Every RPC in an order that trains: requests out, replies in."""
    yield "Describe", verbs.DescribeRequest()
    settings = verbs.SessionSettings(task="mood", message_width=WIDTH, message_tokens=1, entry=1, exit=2, seed=3)
    enrolled = yield "Enroll", verbs.EnrollRequest("recorded", settings, call_id="enroll-1")
    assert isinstance(enrolled, verbs.EnrollReply)
    session = enrolled.session
    message = torch.linspace(-1, 1, 2 * WIDTH).reshape(2, 1, WIDTH)
    ids = {"input_ids": torch.tensor([[5, 6, 7], [8, 9, 0]]), "attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]])}
    said = {"message": message, **ids}
    outputs = ("answer", "state_consistency", "hidden.1", "pooled")
    yield "Forward", verbs.ForwardRequest(session, "forward-1", outputs, True, ("message",), said, "none")
    grads = {"answer": torch.linspace(1, 2, 2 * WIDTH).reshape(2, 1, WIDTH), "state_consistency": torch.tensor(0.5)}
    yield "Backward", verbs.BackwardRequest(session, "backward-1", "forward-1", grads, compression="none")
    yield "Step", verbs.StepRequest(session, 1, 0.01, 1.0, 1.0)
    exported = yield "Export", verbs.ExportRequest(session)
    assert isinstance(exported, verbs.ExportReply)
    imported = yield "Import", verbs.ImportRequest(session, exported.state, call_id="import-1", step=1)
    assert isinstance(imported, verbs.ImportReply)
    session = imported.session
    for compression in ("bf16", "fp16", "int8"):
        yield "Forward", verbs.ForwardRequest(session, compression, ("answer",), False, (), said, compression)
    yield "Renew", verbs.RenewRequest(session)
    yield "Leave", verbs.LeaveRequest(session)


def record(folder: Path) -> None:
    """Holds the conversation with a server of now, and writes it down."""
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=12, max_position_embeddings=8, **SMALL)).save_pretrained(folder / "teacher")
    files = descriptor_pb2.FileDescriptorSet()
    for module in (tensor_pb2, teacher_pb2):
        module.DESCRIPTOR.CopyToProto(files.file.add())
    (folder / "descriptors.binpb").write_bytes(files.SerializeToString())
    with serving(folder / "teacher") as channel:
        lines, reply = conversation(), None
        for number in range(100):
            try:
                name, request = next(lines) if reply is None else lines.send(reply)
            except StopIteration:
                return
            method = next(each for each in METHODS if each.name == name)
            sent = write(request, getattr(request, "compression", None))
            heard = ask(channel, name, sent)
            (folder / f"{number:02}-{name}.request").write_bytes(sent)
            (folder / f"{number:02}-{name}.reply").write_bytes(heard)
            reply = read(method.reply, heard)


if __name__ == "__main__":
    record(Path(sys.argv[1]))
