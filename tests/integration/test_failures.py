"""Teachers that are down, slow, full, killed or cannot start: typed errors within the deadline."""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
import transformers as hf

from student_client import RemoteTeacher
from teacher_server import cli
from teacher_server.app import TeacherApp
from teacher_server.config import ServerConfig
from teacher_server.models.split import FrozenTeacher
from teaching_protocol import verbs
from teaching_protocol.errors import (
    DeadlineExceeded,
    InternalError,
    InvalidSetting,
    ModelLoadError,
    OutOfMemory,
    Overloaded,
    PortInUse,
    TeacherUnavailable,
    UnsupportedFamily,
)
from teaching_protocol.wire import write
from tests.calls import WIDTH, Caller, forward_request, in_s
from tests.integration.gate import poll
from tests.integration.processes import Address, ServerProcess


@contextmanager
def within(seconds: float) -> Iterator[None]:
    started = time.monotonic()
    yield
    assert time.monotonic() - started < seconds


@pytest.fixture
def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def test_a_teacher_that_is_down(free_port: int) -> None:
    teacher = RemoteTeacher(f"127.0.0.1:{free_port}", student="a", message_width=WIDTH, deadline_s=0.6)
    sentence = f"no teacher answers at 127.0.0.1:{free_port} .*; start one there, or check the address"
    with within(2), pytest.raises(TeacherUnavailable, match=sentence):
        teacher.enroll()
    teacher.leave()


def test_a_slow_teacher(servers: dict[str, Address]) -> None:
    server = servers["strict"]
    with Caller(server.name, "slow") as caller:
        request = forward_request(caller.session)
        with server.gate.closed() as gate, within(3):  # type: ignore[union-attr]
            with pytest.raises(DeadlineExceeded, match=r"raise (the deadline|deadline_s)"):
                caller.teacher.forward(request, in_s(0.5))
            gate.wait_until_entered()
        reply = caller.teacher.forward(request, in_s(20))
        assert caller.backward(request).grads["message"].shape == reply.outputs["answer"].shape


def test_a_cancelled_call_never_reaches_the_model(servers: dict[str, Address]) -> None:
    server = servers["strict"]
    steps = "teacher_compute_seconds_count"
    with Caller(server.name, "first") as first, Caller(server.name, "second") as second:
        with ThreadPoolExecutor(1) as pool, grpc.insecure_channel(server.name) as channel:
            with server.gate.closed() as gate:  # type: ignore[union-attr]
                running = pool.submit(first.forward)
                gate.wait_until_entered()
                before = server.metric(steps, method="Forward")
                queued: Any = channel.unary_unary("/teaching_protocol.v1.Teacher/Forward").future(
                    write(forward_request(second.session)), timeout=20
                )
                poll(lambda: server.metric("teacher_in_flight") == 2, "the second call waits")
                queued.cancel()
                # the server hears of it before the gate opens: a later call on the same channel was answered
                channel.unary_unary("/teaching_protocol.v1.Teacher/Describe")(b"", timeout=20)
            assert running.result(20)[1].outputs
        poll(lambda: server.metric("teacher_in_flight") == 0, "both are gone")
        assert server.metric("teacher_rejected_total", reason="cancelled") >= 1
        assert server.metric(steps, method="Forward") == before + 1
        assert second.forward()[1].outputs


def test_a_full_teacher_is_tried_again_and_control_does_not_wait(servers: dict[str, Address]) -> None:
    server = servers["tight"]
    with Caller(server.name, "first") as first, Caller(server.name, "second") as second, ThreadPoolExecutor(2) as pool:
        with server.gate.closed() as gate:  # type: ignore[union-attr]
            running = pool.submit(first.forward)
            gate.wait_until_entered()
            with within(3), pytest.raises(Overloaded, match="all 1 permits are taken; try again later"):
                second.teacher.forward(forward_request(second.session), in_s(0.3))
            with within(3):
                second.teacher.renew(verbs.RenewRequest(second.session), in_s(2))
                second.teacher.describe(verbs.DescribeRequest(), in_s(2))
            refused = server.metric("teacher_rejected_total", reason="Overloaded")
            patient = pool.submit(second.forward)
            poll(lambda: server.metric("teacher_rejected_total", reason="Overloaded") > refused, "it was refused")
        assert running.result(20)[1].outputs
        assert patient.result(20)[1].outputs


def test_a_teacher_killed_in_mid_call(model_folder: Callable[[str], Path], tmp_path: Path) -> None:
    process = ServerProcess({"victim": {"model": str(model_folder("bert")), "gate": str(tmp_path)}})
    server = process.addresses["victim"]
    caller = Caller(server.name, "orphan").__enter__()
    with ThreadPoolExecutor(1) as pool, server.gate.closed() as gate:  # type: ignore[union-attr]
        request = forward_request(caller.session)
        waiting = pool.submit(caller.teacher.forward, request, in_s(10))
        gate.wait_until_entered()
        process.kill()
        with within(5), pytest.raises(TeacherUnavailable, match="no teacher answers at"):
            waiting.result(10)
    with within(2), pytest.raises(TeacherUnavailable):
        caller.forward()
    caller.teacher.close()
    process.close()


def app(model: str, teacher: FrozenTeacher | None = None, **config: Any) -> TeacherApp:
    return TeacherApp(ServerConfig(**{"model": model, "port": 0, "metrics_port": -1} | config), teacher)


def test_a_bug_is_an_id_in_the_log_and_no_more(bert: FrozenTeacher, caplog: pytest.LogCaptureFixture) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("a secret of the server")

    with app("tiny", bert) as served, Caller(f"127.0.0.1:{served.port}", "a") as caller:
        hook = bert.family.blocks[-1].register_forward_pre_hook(broken)
        with pytest.raises(InternalError, match=r"^internal error [0-9a-f]{12}; the server's log has the") as failure:
            caller.forward()
        hook.remove()
        assert str(failure.value).split()[2].rstrip(";") in caplog.text
        assert "a secret of the server" in caplog.text
        assert caller.forward()[1].outputs


def test_a_device_without_room(bert: FrozenTeacher) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("no room")

    with app("tiny", bert) as served, Caller(f"127.0.0.1:{served.port}", "a") as caller:
        hook = bert.family.blocks[-1].register_forward_pre_hook(full)
        with pytest.raises(OutOfMemory, match="has no room for this call; send fewer rows or tokens, or try again"):
            caller.forward()
        hook.remove()
        assert caller.forward()[1].outputs


def test_a_port_in_use(servers: dict[str, Address], bert: FrozenTeacher, free_port: int) -> None:
    taken = servers["bert"]
    with pytest.raises(PortInUse, match=f"127.0.0.1:{taken.port} cannot be bound.*choose another --port, or 0"):
        app("tiny", bert, port=taken.port).start()
    sentence = f"metrics port 127.0.0.1:{taken.metrics_port} cannot be bound.*choose another --metrics-port, 0 .*-1"
    with pytest.raises(PortInUse, match=sentence):
        app("tiny", bert, port=free_port, metrics_port=taken.metrics_port).start()


def test_a_failed_start_lets_go_of_its_port(servers: dict[str, Address], bert: FrozenTeacher, free_port: int) -> None:
    with pytest.raises(PortInUse):
        app("tiny", bert, port=free_port, metrics_port=servers["bert"].metrics_port).start()
    with app("tiny", bert, port=free_port) as served:
        assert served.port == free_port


def test_a_bind_that_anyone_could_reach(bert: FrozenTeacher) -> None:
    with pytest.raises(
        InvalidSetting, match=r"host 0\.0\.0\.0: anyone who reaches .*bind 127\.0\.0\.1, or say --insecure"
    ):
        app("tiny", bert, host="0.0.0.0").start()


def test_a_span_the_model_has_not(bert: FrozenTeacher) -> None:
    with pytest.raises(InvalidSetting, match=r"entry 3, exit 9: expected 0 <= entry < exit <= 4"):
        app("tiny", bert, entry=3, exit=9).start()


def test_models_that_do_not_load(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"has no config\.json; give a folder written by save_pretrained"):
        app(str(tmp_path)).start()
    with pytest.raises(ModelLoadError, match="is no folder; give a Hugging Face model name or an existing folder"):
        app(str(tmp_path / "gone")).start()
    hf.XLNetConfig(vocab_size=9, d_model=8, n_layer=1, n_head=1, d_inner=8).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedFamily, match=r"'xlnet' has no adapter; .*bert, distilbert, .*vit"):
        app(str(tmp_path)).start()


def test_the_command_says_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["teacher-server", "serve", "--model", str(tmp_path), "--port", "0"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 1
    error = capsys.readouterr().err
    assert "teacher-server: " in error
    assert "has no config.json" in error
    assert "Traceback" not in error
