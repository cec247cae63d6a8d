"""`student-client doctor` against real servers: good ones, and each condition it is to find, caused for real."""

from __future__ import annotations

import dataclasses
import json
import signal
import socket
import subprocess
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
from typer.testing import CliRunner

from student_client.cli import build_app
from student_client.connection.transport import GrpcTransport
from teacher_server.app import TeacherApp
from teacher_server.config import ServerConfig
from teacher_server.models.loading import load_teacher
from teaching_protocol.diagnosis.reaching import check_clock
from teaching_protocol.errors import ConfigError
from tests.certificates import CertificateAuthority
from tests.integration.doctors import Visit, ask_student_doctor
from tests.integration.gate import poll
from tests.integration.processes import ROOT, Address, ServerProcess
from tests.unit.teaching_protocol.test_diagnosis import hang_up, listener, say_nothing

CHECKS = [
    "versions",
    "device",
    "memory",
    "threads",
    "malloc",
    "credentials",
    "connection",
    "tls",
    "teacher",
    "clock",
    "latency",
    "session",
    "gradient",
    "codec_gradient",
    "repeatability",
    "strangers",
    "compression",
    "bandwidth",
    "shared_memory",
]


@pytest.fixture(autouse=True)
def _no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TEACHER_TOKEN", raising=False)


@contextmanager
def serving(
    folder: Path, break_it: Callable[[Any], object] = lambda teacher: None, **settings: Any
) -> Iterator[TeacherApp]:
    """A server in this process whose model or card is changed before it serves."""
    config = ServerConfig(model=str(folder), port=0, metrics_port=-1, handoff_s=0.0, **settings)
    teacher = load_teacher(config.model, config.dtype)
    break_it(teacher)
    with TeacherApp(config, teacher) as app:
        yield app


def at(app: TeacherApp) -> str:
    return f"127.0.0.1:{app.port}"


@pytest.mark.parametrize("name", ["bert", "llama", "resnet", "alone_a"])
def test_a_good_teacher_is_found_good_and_left(name: str, servers: dict[str, Address]) -> None:
    found = ask_student_doctor(servers[name].name)
    assert [each["check"] for each in found.report["findings"]] == CHECKS
    assert found.statuses() == {"ok"}, found.report
    assert found.exit_code in (0, 3)  # 3 where this machine is busy
    assert found["session"]["values"]["student"].startswith("doctor-probe-")
    assert found["shared_memory"]["values"]["used"] is True
    assert found["compression"]["values"]["int8_answer_error"] > found["compression"]["values"]["fp16_answer_error"] > 0
    if name == "bert":
        assert servers[name].metric("teacher_sessions") == 0


def test_the_same_model_here(servers: dict[str, Address], model_folder: Callable[[str], Path]) -> None:
    found = ask_student_doctor(servers["bert"].name, "--model", str(model_folder("bert")))
    assert found["model"]["status"] == "ok"
    assert found["model"]["values"]["cosine"] > 0.999999


def test_another_model_here(servers: dict[str, Address], model_folder: Callable[[str], Path]) -> None:
    found = ask_student_doctor(servers["bert"].name, "--model", str(model_folder("electra")))
    assert (found["model"]["status"], found.exit_code) == ("fail", 1)


def test_nobody_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    found = ask_student_doctor(f"127.0.0.1:{port}")
    assert (found.exit_code, found["connection"]["status"], found["gradient"]["status"]) == (2, "fail", "skip")
    assert found["connection"]["values"]["kind"] == "refused"


@pytest.mark.parametrize("behaviour", [say_nothing, hang_up])
def test_a_listener_that_is_no_teacher(behaviour: Any) -> None:
    with listener(behaviour) as address:
        began = time.monotonic()
        found = ask_student_doctor(address, "--limit-s", "1")
    assert found.exit_code == 2
    assert time.monotonic() - began < 20


def test_the_metrics_port_is_told_as_an_http_server(servers: dict[str, Address]) -> None:
    found = ask_student_doctor(f"127.0.0.1:{servers['bert'].metrics_port}")
    assert (found.exit_code, found["connection"]["values"]["kind"]) == (2, "http1")
    assert "metrics" in found["connection"]["advice"]


def test_a_grpc_server_without_a_teacher() -> None:
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    found = ask_student_doctor(f"127.0.0.1:{port}")
    server.stop(None).wait()
    assert (found.exit_code, found["connection"]["status"], found["teacher"]["status"]) == (1, "ok", "fail")
    assert "no teacher of this protocol" in found["teacher"]["measured"]


def test_another_version_of_the_protocol(model_folder: Callable[[str], Path]) -> None:
    with serving(model_folder("bert")) as app:
        app.actor.card = dataclasses.replace(app.actor.card, protocol_version=99)
        found = ask_student_doctor(at(app))
    assert (found.exit_code, found["teacher"]["status"]) == (1, "fail")
    assert "install the same release" in found["teacher"]["advice"]
    assert found["session"]["status"] == "skip"


def test_a_wrong_gradient(model_folder: Callable[[str], Path]) -> None:
    def break_it(teacher: Any) -> None:
        teacher.family.blocks[-1].register_full_backward_hook(lambda module, given, out: (1.5 * given[0], *given[1:]))

    with serving(model_folder("bert"), break_it) as app:
        found = ask_student_doctor(at(app))
    assert found.exit_code == 1
    assert (found["gradient"]["status"], found["codec_gradient"]["status"]) == ("fail", "fail")
    assert found.statuses("gradient", "codec_gradient") == {"ok"}


def test_answers_that_are_never_alike(model_folder: Callable[[str], Path]) -> None:
    def break_it(teacher: Any) -> None:
        teacher.family.blocks[-1].register_forward_hook(lambda module, given, out: out + 0.05 * torch.randn_like(out))

    with serving(model_folder("bert"), break_it) as app:
        found = ask_student_doctor(at(app))
    assert (found.exit_code, found["repeatability"]["status"], found["strangers"]["status"]) == (1, "fail", "fail")
    assert found["repeatability"]["values"]["repeat_equal"] is True


def test_half_precision_is_a_warning_with_the_way_to_be_sure(model_folder: Callable[[str], Path]) -> None:
    with serving(model_folder("electra"), dtype="bfloat16") as app:
        found = ask_student_doctor(at(app))
    assert found.exit_code == 3, found.report
    rough = [found[name] for name in ("gradient", "codec_gradient") if found[name]["status"] == "warn"]
    assert rough
    assert all("--dtype float32" in each["advice"] for each in rough)


def test_shared_memory_that_is_off_is_said(model_folder: Callable[[str], Path]) -> None:
    with serving(model_folder("bert"), shared_memory=False, lease_s=2.0) as app:
        found = ask_student_doctor(at(app))
    assert found["shared_memory"]["values"] == {"used": False}
    assert "--no-shared-memory" in found["shared_memory"]["measured"]
    assert found["session"]["status"] == "warn"
    assert "lease_s" in found["session"]["advice"]


def test_a_clock_that_is_wrong(servers: dict[str, Address]) -> None:
    transport = GrpcTransport(servers["bert"].name, shared_memory=False)
    for shift, status in ((0.0, "ok"), (-20.0, "warn"), (4000.0, "fail")):
        found = check_clock(transport, lambda shift=shift: transport.clock_s + shift, 10.0)  # type: ignore[misc]
        assert found.status == status
        assert found.values["skew_s"] == pytest.approx(shift, abs=0.5)
    transport.close()


def test_a_server_that_does_not_tell_its_time(servers: dict[str, Address]) -> None:
    transport = GrpcTransport(servers["bert"].name, shared_memory=False)
    assert check_clock(transport, lambda: 0.0, 10.0).status == "skip"
    transport.close()


def test_a_teacher_that_hangs_costs_no_more_than_the_limits(servers: dict[str, Address]) -> None:
    gate = servers["strict"].gate
    assert gate is not None
    with gate.closed():
        began = time.monotonic()
        found = ask_student_doctor(servers["strict"].name, "--limit-s", "1")
        assert time.monotonic() - began < 30
    assert (found.exit_code, found["session"]["status"], found["gradient"]["status"]) == (1, "ok", "fail")
    poll(lambda: servers["strict"].metric("teacher_sessions") == 0, "the doctor leaves")


def test_a_signal_leaves_no_session_behind(servers: dict[str, Address]) -> None:
    server, signals = servers["strict"], (signal.SIGINT, signal.SIGTERM)
    assert server.gate is not None
    words = [sys.executable, "-m", "student_client", "doctor", server.name, "--limit-s", "60"]
    with server.gate.closed():
        asking = [
            subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for _ in signals
        ]
        poll(lambda: server.metric("teacher_sessions") == len(asking), "both are in", 90.0)
        for process, number in zip(asking, signals, strict=True):
            process.send_signal(number)
        assert [process.wait(90) - 128 for process in asking] == list(signals)
        poll(lambda: server.metric("teacher_sessions") == 0, "both left")


def test_the_command_prints_nothing_but_its_object(servers: dict[str, Address]) -> None:
    words = [sys.executable, "-m", "student_client", "doctor", servers["bert"].name, "--json"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == json.loads(done.stdout)["exit_code"]


def test_the_table_names_every_check(servers: dict[str, Address]) -> None:
    done = CliRunner().invoke(build_app(), ["doctor", servers["bert"].name])
    assert all(name in done.stdout for name in CHECKS)


def test_an_address_that_is_none() -> None:
    done = CliRunner().invoke(build_app(), ["doctor", "nowhere", "--json"])
    assert isinstance(done.exception, ConfigError)
    assert done.stdout == ""


# trust


class Trust:
    """Servers with certificates of several kinds, and who signs them."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.ca = CertificateAuthority(folder / "ours", "ours")
        self.other = CertificateAuthority(folder / "theirs", "theirs")
        here = "DNS:localhost,IP:127.0.0.1"
        soon = time.strftime("%Y%m%d%H%M%SZ", time.gmtime(time.time() + 5 * 86400))
        pairs = {
            "good": self.ca.sign("teacher", here),
            "expired": self.ca.sign("past", here, "20200101000000Z", "20210101000000Z"),
            "ending": self.ca.sign("ending", here, "20200101000000Z", soon),
            "misnamed": self.ca.sign("misnamed", "DNS:elsewhere.example"),
        }
        self.ann = self.ca.sign("ann")
        self.stranger = self.other.sign("ann")
        common = {"model": str(model), "metrics_port": -1}
        configs: dict[str, dict[str, Any]] = {
            name: {**common, "tls_cert": str(pair.cert), "tls_key": str(pair.key)} for name, pair in pairs.items()
        }
        configs["mutual"] = configs["good"] | {"client_ca": str(self.ca.cert)}
        self.process = ServerProcess(configs)

    def ask(self, name: str, *words: str) -> Visit:
        return ask_student_doctor(self.process.addresses[name].name, *words)


@pytest.fixture(scope="module")
def trust(model_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trust]:
    found = Trust(tmp_path_factory.mktemp("trust"), model_folder("bert"))
    yield found
    assert found.process.close() == 0


def test_tls_that_is_right(trust: Trust) -> None:
    found = trust.ask("good", "--ca", str(trust.ca.cert))
    assert found.statuses() == {"ok"}, found.report
    assert found["tls"]["values"]["common_name"] == "teacher"
    assert found["tls"]["values"]["days_left"] > 365


def test_a_certificate_that_soon_ends(trust: Trust) -> None:
    found = trust.ask("ending", "--ca", str(trust.ca.cert))
    assert (found["tls"]["status"], found.exit_code) == ("warn", 3)
    assert 4 < found["tls"]["values"]["days_left"] <= 5


@pytest.mark.parametrize(
    ("name", "ca", "said", "advice"),
    [
        ("good", "other", "not trusted", "--ca"),
        ("expired", "ca", "expired", "make a new certificate"),
        ("misnamed", "ca", "elsewhere.example", "by a name that its certificate has"),
    ],
)
def test_a_teacher_that_cannot_prove_who_it_is(name: str, ca: str, said: str, advice: str, trust: Trust) -> None:
    found = trust.ask(name, "--ca", str(getattr(trust, ca).cert))
    assert (found.exit_code, found["connection"]["status"], found["tls"]["status"]) == (1, "ok", "fail")
    assert said in found["tls"]["measured"]
    assert advice in found["tls"]["advice"]
    assert found["teacher"]["status"] == "skip"


def test_tls_on_one_side_only(trust: Trust, servers: dict[str, Address]) -> None:
    off = trust.ask("good")
    assert (off.exit_code, off["tls"]["status"]) == (1, "fail")
    assert "give --ca" in off["tls"]["advice"]
    on = ask_student_doctor(servers["bert"].name, "--ca", str(trust.ca.cert))
    assert (on.exit_code, on["tls"]["status"]) == (1, "fail")
    assert "leave --ca away" in on["tls"]["advice"]


def test_a_certificate_of_ones_own(trust: Trust) -> None:
    ca = ("--ca", str(trust.ca.cert))
    assert trust.ask("mutual", *ca, "--cert", str(trust.ann.cert), "--key", str(trust.ann.key)).statuses() == {"ok"}
    without = trust.ask("mutual", *ca)
    assert (without.exit_code, without["tls"]["status"]) == (1, "fail")
    assert "--cert and --key" in without["tls"]["advice"]
    refused = trust.ask("mutual", *ca, "--cert", str(trust.stranger.cert), "--key", str(trust.stranger.key))
    assert (refused.exit_code, refused["tls"]["status"]) == (1, "fail")


def test_a_token_that_others_may_read(servers: dict[str, Address], tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("ttk-secret-of-mine\n")
    path.chmod(0o644)
    found = ask_student_doctor(servers["bert"].name, "--token-file", str(path))
    assert (found.exit_code, found["credentials"]["status"]) == (1, "fail")
    assert "chmod 600" in found["credentials"]["advice"]
    path.chmod(0o600)
    found = ask_student_doctor(servers["bert"].name, "--token-file", str(path))
    assert found["credentials"]["values"]["token"] is True
    assert "secret-of-mine" not in json.dumps(found.report)


def test_files_that_are_no_certificates(servers: dict[str, Address], tmp_path: Path) -> None:
    path = tmp_path / "ca.pem"
    path.write_text("none")
    found = ask_student_doctor(servers["bert"].name, "--ca", str(path))
    assert found["credentials"]["status"] == "fail"
