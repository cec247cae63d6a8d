"""The probe as a process: it finds a teacher that serves, with TLS and tokens, too, and says why where it does not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from teacher_server.app import TeacherApp
from teacher_server.config import ServerConfig
from teacher_server.models.split import FrozenTeacher
from teacher_server.probe import main
from tests.certificates import CertificateAuthority


def probe(*words: object) -> tuple[int, str]:
    command = [sys.executable, "-m", "teacher_server.probe", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stderr


def test_serving_and_draining(bert: FrozenTeacher) -> None:
    with TeacherApp(ServerConfig(model="tiny", port=0, metrics_port=-1), bert) as app:
        address = f"127.0.0.1:{app.port}"
        assert probe(address) == (0, "")
        app._health.set(serving=False)
        assert probe(address) == (1, f"probe: {address}: it answers, and does not serve (yet, or any more)\n")
    code, said = probe(address)
    assert code == 1
    assert "UNAVAILABLE" in said


def test_behind_tls_client_certificates_and_tokens(bert: FrozenTeacher, tmp_path: Path) -> None:
    authority = CertificateAuthority(tmp_path / "ca", "own")
    server, own = authority.sign("teacher", "DNS:teacher"), authority.sign("probe")
    (tmp_path / "tokens.json").write_text('{"version": 1, "tokens": []}')
    (tmp_path / "tokens.json").chmod(0o600)
    config = ServerConfig(
        model="tiny", port=0, metrics_port=-1, tls_cert=server.cert, tls_key=server.key, client_ca=authority.cert
    )
    with TeacherApp(config, bert) as app:
        trusted = [f"127.0.0.1:{app.port}", "--ca", authority.cert, "--name", "teacher"]
        assert probe(*trusted, "--cert", own.cert, "--key", own.key) == (0, "")
        assert probe(*trusted)[0] == 1, "TLS asks for a certificate"
        assert probe(trusted[0])[0] == 1, "TLS is asked for"
    with TeacherApp(config.model_copy(update={"client_ca": None, "tokens": tmp_path / "tokens.json"}), bert) as app:
        assert probe(f"127.0.0.1:{app.port}", "--ca", authority.cert, "--name", "teacher") == (0, "")
        assert probe(f"127.0.0.1:{app.port}", "--ca", authority.cert)[0] == 1, "another name"


def test_a_file_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["127.0.0.1:1", "--ca", "/nowhere/ca.pem"]) == 1
    assert "/nowhere/ca.pem cannot be read" in capsys.readouterr().err


def test_it_is_light() -> None:
    """It runs every few seconds: no torch, no model."""
    script = (
        "import sys, teacher_server.probe; assert not {'torch', 'transformers', 'google.protobuf'} & set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], timeout=60).returncode == 0
