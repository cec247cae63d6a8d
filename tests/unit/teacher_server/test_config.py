from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from teacher_server.config import ServerConfig, load_config
from teaching_protocol.errors import ConfigError


def test_defaults_serve_loopback_and_are_frozen() -> None:
    config = ServerConfig(model="m")
    assert (config.host, config.metrics_host, config.insecure) == ("127.0.0.1", "127.0.0.1", False)
    with pytest.raises(ValidationError):
        config.port = 1  # type: ignore[misc]
    assert all(field.description for field in ServerConfig.model_fields.values())


@pytest.mark.parametrize(
    ("name", "text"),
    [("a.yaml", "model: here\nport: 7\nentry: 2\n"), ("a.toml", 'model = "here"\nport = 7\nentry = 2')],
)
def test_flags_go_before_the_file(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    config = load_config(path, {"port": 8, "entry": None})
    assert (config.model, config.port, config.entry) == ("here", 8, 2)


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        (
            "a.yaml",
            "model: m\nprot: 5",
            r"prot: received 5, expected no field of this name \(from the file .*a\.yaml\); did you mean port\?",
        ),
        (
            "a.yaml",
            "model: m\nport: 70000",
            r"port: received 70000, expected .*less than or equal to 65535 \(from the file",
        ),
        ("a.yaml", "model: m\npermits: 0", "permits: "),
        ("a.yaml", "model: m\ndtype: int8", "dtype: .*'float32', 'bfloat16' or 'float16'"),
        ("a.yaml", "port: 5", "no model was given; say --model"),
        ("a.yaml", "model: [", "cannot be read"),
        ("a.toml", "model =", "cannot be read"),
        ("a.yaml", "- model", "received list, expected a mapping"),
        ("a.yaml", "", "no model was given"),
        ("a.yaml", b"\xff\xfe\x00", "cannot be read"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, text: str | bytes, sentence: str) -> None:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError, match=sentence):
        load_config(path, {})


def test_no_file_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.yaml cannot be read"):
        load_config(tmp_path / "gone.yaml", {"model": "m"})
