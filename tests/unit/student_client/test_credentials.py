"""Where a student's token comes from, and where it is never sent."""

from __future__ import annotations

from pathlib import Path

import pytest

from student_client.config import RunConfig
from student_client.connection.credentials import Credentials
from teaching_protocol.errors import ConfigError

TOKEN = "ttk-0123456789abcdef-" + "s" * 43


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.touch(mode=0o600)
    path.write_text(TOKEN + "\n")
    return path


def test_from_a_file_or_the_environment(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEACHER_TOKEN", "from-environment")
    assert Credentials(token_file=file).token() == TOKEN
    assert Credentials().token() == "from-environment"
    monkeypatch.delenv("TEACHER_TOKEN")
    assert Credentials().token() == ""
    assert Credentials().metadata() == ()


@pytest.mark.parametrize("address", ["10.0.0.1:50051", "teacher.example:443", "127.evil.example:1", "[2001:db8::1]:5"])
def test_a_token_is_not_sent_readable_to_another_machine(address: str, file: Path) -> None:
    with pytest.raises(ConfigError, match="would be readable on its way"):
        Credentials(token_file=file).channel(address, [])
    Credentials(token_file=file, insecure=True).channel(address, []).close()
    Credentials(token_file=file, tls=True).channel(address, []).close()


@pytest.mark.parametrize("address", ["127.0.0.1:50051", "localhost:1", "[::1]:1", "unix:/run/teacher"])
def test_on_this_machine_it_is(address: str, file: Path) -> None:
    credentials = Credentials(token_file=file)
    credentials.channel(address, []).close()
    assert credentials.metadata() == (("authorization", f"Bearer {TOKEN}"),)


@pytest.mark.parametrize(
    ("text", "mode"), [(TOKEN, 0o644), (TOKEN, 0o640), ("", 0o600), ("two words", 0o600), ("é", 0o600)]
)
def test_files_that_hold_no_token_or_show_it(text: str, mode: int, tmp_path: Path) -> None:
    path = tmp_path / "bad"
    path.write_text(text)
    path.chmod(mode)
    with pytest.raises(ConfigError) as refused:
        Credentials(token_file=path).token()
    assert TOKEN not in str(refused.value)


def test_a_run_keeps_the_path_and_not_the_token(file: Path) -> None:
    config = RunConfig.model_validate({"teacher": {"token_file": file}})
    assert str(file) in config.model_dump_json()
    assert TOKEN not in config.model_dump_json() + repr(config) + repr(Credentials(token_file=file))
    assert config.identity() == RunConfig.model_validate({"teacher": {"ca": "/elsewhere"}}).identity()
