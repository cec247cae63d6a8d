"""`teacher-server doctor`: of this machine, of a model in process against itself served, of a running server."""

from __future__ import annotations

import http.server
import json
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from teacher_server.app import TeacherApp
from teacher_server.config import ServerConfig
from teacher_server.models.loading import load_teacher
from teacher_server.security.tokens import add_token
from tests.certificates import CertificateAuthority
from tests.integration.doctors import ask_server_doctor
from tests.integration.processes import Address

ANY_PORT = ("--port", "0", "--metrics-port", "-1")
MACHINE = [
    "versions",
    "device",
    "memory",
    "threads",
    "malloc",
    "shared_memory",
    "limits",
    "config",
    "ports",
    "tokens",
    "certificate",
]
MODEL = ["model", "local_remote", "gradient", "codec_gradient"]
RUNNING = ["versions", "connection", "tls", "teacher", "health", "clock", "latency"]


@pytest.fixture(autouse=True)
def _no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TEACHER_TOKEN", raising=False)


def test_this_machine() -> None:
    found = ask_server_doctor(*ANY_PORT)
    assert [each["check"] for each in found.report["findings"]] == MACHINE
    assert found.statuses("limits") == {"ok"}, found.report
    assert found.exit_code in (0, 3)


@pytest.mark.parametrize("model_type", ["bert", "gpt2", "vit"])
def test_a_model_in_process_equals_itself_served(model_type: str, model_folder: Callable[[str], Path]) -> None:
    found = ask_server_doctor(*ANY_PORT, "--model", str(model_folder(model_type)), "--device", "cpu")
    assert [each["check"] for each in found.report["findings"]] == MACHINE + MODEL
    assert found.statuses("limits") == {"ok"}, found.report
    assert found["local_remote"]["values"]["gradient_cosine"] == pytest.approx(1.0)
    assert found["local_remote"]["values"]["gradient_largest_error"] <= 1e-5
    assert found["model"]["values"]["weights_bytes"] > 0


def test_a_model_that_does_not_load() -> None:
    found = ask_server_doctor(*ANY_PORT, "--model", "/nowhere")
    assert (found.exit_code, found["model"]["status"], found["local_remote"]["status"]) == (1, "fail", "skip")


def test_ports_that_are_taken(servers: dict[str, Address]) -> None:
    server = servers["bert"]
    found = ask_server_doctor("--port", str(server.port), "--metrics-port", str(server.metrics_port))
    assert (found.exit_code, found["ports"]["status"]) == (1, "fail")
    assert found["ports"]["values"] == {
        "port": "a gRPC server has it",
        "metrics_port": "an HTTP server has it",
    }


def test_a_port_that_a_silent_program_has() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        found = ask_server_doctor("--port", str(other.getsockname()[1]), "--metrics-port", "-1")
    assert found["ports"]["values"]["port"] == "another program has it"


@pytest.mark.parametrize(("mode", "status", "code"), [(0o600, "ok", None), (0o644, "warn", 3), (0o666, "fail", 1)])
def test_who_may_read_and_write_the_token_file(mode: int, status: str, code: int | None, tmp_path: Path) -> None:
    path = tmp_path / "tokens.json"
    token = add_token(path, "ann")
    path.chmod(mode)
    found = ask_server_doctor(*ANY_PORT, "--tokens", str(path))
    assert found["tokens"]["status"] == status
    assert code in (None, found.exit_code)
    assert token not in json.dumps(found.report)
    if status != "ok":
        assert "chmod 600" in found["tokens"]["advice"]


def test_certificates(tmp_path: Path) -> None:
    ca, here = CertificateAuthority(tmp_path / "ca", "ours"), "IP:127.0.0.1"
    good, other = ca.sign("teacher", here), ca.sign("other", here)
    past = ca.sign("past", here, "20200101000000Z", "20210101000000Z")
    nameless = ca.sign("nameless")
    wanted = ((good.cert, good.key, "ok"), (past.cert, past.key, "fail"), (good.cert, other.key, "fail"))
    for cert, key, status in (*wanted, (nameless.cert, nameless.key, "fail")):
        key.chmod(0o600)
        found = ask_server_doctor(*ANY_PORT, "--tls-cert", str(cert), "--tls-key", str(key))
        assert found["certificate"]["status"] == status, found["certificate"]
    good.key.chmod(0o644)
    found = ask_server_doctor(*ANY_PORT, "--tls-cert", str(good.cert), "--tls-key", str(good.key))
    assert (found["certificate"]["status"], found.exit_code) == ("warn", 3)


@pytest.mark.parametrize(
    ("text", "said"),
    [("model: any\nprot: 1\n", "prot"), ("model: any\nhost: 0.0.0.0\n", "0.0.0.0"), ("model: [\n", "cannot be read")],
)
def test_a_configuration_that_cannot_be_used(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "teacher.yaml"
    path.write_text(text)
    found = ask_server_doctor("--config", str(path), *ANY_PORT)
    assert (found.exit_code, found["config"]["status"]) == (1, "fail")
    assert said in found["config"]["measured"] + found["config"]["advice"]


def test_more_threads_than_cores() -> None:
    found = ask_server_doctor(*ANY_PORT, "--threads", "1024")
    assert (found.exit_code, found["threads"]["status"]) == (3, "warn")


def test_a_device_that_is_not_there() -> None:
    found = ask_server_doctor(*ANY_PORT, "--device", "cuda:99")
    assert (found.exit_code, found["device"]["status"]) == (1, "fail")


# a running server


def test_a_running_server_and_the_same_model_here(
    servers: dict[str, Address], model_folder: Callable[[str], Path]
) -> None:
    found = ask_server_doctor(servers["bert"].name, "--model", str(model_folder("bert")), "--device", "cpu")
    assert [each["check"] for each in found.report["findings"]] == [*RUNNING, "model", "local_remote"]
    assert found.statuses() == {"ok"}, found.report
    assert found["local_remote"]["values"]["same_weights"] is True
    assert found["local_remote"]["values"]["codec_cosine"] == pytest.approx(1.0)
    assert servers["bert"].metric("teacher_sessions") == 0


def test_a_running_server_and_another_model_here(
    servers: dict[str, Address], model_folder: Callable[[str], Path]
) -> None:
    found = ask_server_doctor(servers["bert"].name, "--model", str(model_folder("electra")))
    assert (found.exit_code, found["local_remote"]["status"]) == (1, "fail")
    assert "the weights differ" in found["local_remote"]["measured"]


def test_a_server_that_changes_numbers(model_folder: Callable[[str], Path]) -> None:
    folder = model_folder("bert")
    teacher: Any = load_teacher(str(folder))
    teacher.family.blocks[-1].register_full_backward_hook(lambda module, given, out: (1.5 * given[0], *given[1:]))
    with TeacherApp(ServerConfig(model=str(folder), port=0, metrics_port=-1, handoff_s=0.0), teacher) as app:
        found = ask_server_doctor(f"127.0.0.1:{app.port}", "--model", str(folder))
    assert (found.exit_code, found["local_remote"]["status"]) == (1, "fail")
    assert found["local_remote"]["values"]["answer_largest_error"] <= 1e-5
    assert found["local_remote"]["values"]["gradient_largest_error"] > 1e-3


def test_a_server_that_drains_says_so(model_folder: Callable[[str], Path]) -> None:
    config = ServerConfig(model=str(model_folder("bert")), port=0, metrics_port=-1, handoff_s=0.0)
    with TeacherApp(config) as app:
        app._health.set(serving=False)
        found = ask_server_doctor(f"127.0.0.1:{app.port}")
    assert (found.exit_code, found["health"]["status"]) == (3, "warn")


def test_nothing_that_speaks_grpc_there() -> None:
    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, format: str, *values: object) -> None:
            """Says nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        found = ask_server_doctor(f"127.0.0.1:{server.server_port}")
        server.shutdown()
        thread.join(5)
    assert (found.exit_code, found["connection"]["values"]["kind"]) == (2, "http1")
