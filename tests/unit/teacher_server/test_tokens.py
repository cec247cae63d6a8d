"""The token file: what it holds, who may write it, what becomes of it; and addresses that are refused without TLS."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from teacher_server.config import ServerConfig
from teacher_server.security import tokens
from teacher_server.security.authority import Authority
from teacher_server.security.command import add
from teacher_server.security.tls import check_bind, is_loopback, server_credentials
from teacher_server.security.tokens import add_token, parse_token, read_tokens, revoke
from teaching_protocol.channel import TOKEN_KEY
from teaching_protocol.errors import ConfigError, InvalidSetting, Unauthenticated


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "tokens.json"


def sent(token: str) -> tuple[tuple[str, str], ...]:
    return ((TOKEN_KEY, f"Bearer {token}"),)


def test_the_file_holds_hashes_alone_and_is_its_owners(file: Path) -> None:
    old = os.umask(0)
    try:
        made = [add_token(file, "ann") for _ in range(2)]
    finally:
        os.umask(old)
    text = file.read_text()
    assert file.stat().st_mode & 0o777 == 0o600
    assert [each.name for each in file.parent.iterdir() if each.name.startswith(".")] == []
    records = json.loads(text)["tokens"]
    assert records[0]["salt"] != records[1]["salt"]
    for token in made:
        _, secret = parse_token(token) or ("", "")
        assert len(secret) == 43
        assert secret not in text
        assert Authority(file).identify(sent(token), dict) == "ann"


def test_many_at_once_lose_none(file: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda number: add_token(file, f"s{number}"), range(8)))
    assert {each.name for each in read_tokens(file).tokens} == {f"s{number}" for number in range(8)}
    assert len(set(made)) == 8


def test_a_write_that_fails_leaves_the_last_good_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_token(file, "ann")
    before = file.read_text()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tokens.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        add_token(file, "bob")
    assert file.read_text() == before
    assert not [each for each in file.parent.iterdir() if each.name.startswith(".")]


def test_a_known_token_costs_no_hash(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    token = add_token(file, "ann")
    authority = Authority(file)
    assert authority.needs_hash(sent(token))
    assert authority.identify(sent(token), dict) == "ann"
    monkeypatch.setattr(tokens.hashlib, "scrypt", None)
    assert not authority.needs_hash(sent(token))
    assert authority.identify(sent(token), dict) == "ann"
    for wrong in (token[:-1] + ("a" if token[-1] != "a" else "b"), "ttk-" + "0" * 16 + token[20:], "", "ttk"):
        with pytest.raises(Unauthenticated):  # and neither does one that is wrong for sure
            authority.needs_hash(sent(wrong))


def test_the_secret_is_compared_in_constant_time(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    token, compared = add_token(file, "ann"), []
    real = tokens.hmac.compare_digest
    monkeypatch.setattr(tokens.hmac, "compare_digest", lambda a, b: compared.append((a, b)) or real(a, b))
    authority = Authority(file)
    for each in (token, token, token[:-2] + "zz"):
        try:
            authority.identify(sent(each), dict)
        except Unauthenticated:
            continue
    assert len(compared) >= 3


BROKEN = {
    "empty": "",
    "no json": "{",
    "a list": "[]",
    "another version": '{"version": 2}',
    "more": '{"version": 1, "mood": 1}',
    "no hash": '{"tokens": [{"name": "a", "id": "0123456789abcdef", "salt": "", "hash": "", "created": ""}]}',
    "deep": "[" * 100_000,
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_file_that_is_none(name: str, file: Path) -> None:
    file.write_text(BROKEN[name])
    with pytest.raises(ConfigError, match=r"tokens\.json is no token file .*restore it"):
        Authority(file)
    with pytest.raises(ConfigError):
        add_token(file, "ann")
    assert file.read_text() == BROKEN[name]


def test_a_file_that_others_may_write(file: Path) -> None:
    add_token(file, "ann")
    file.chmod(0o622)
    with pytest.raises(ConfigError, match=r"mode 622.*chmod 600"):
        Authority(file)


def test_a_file_that_is_not_there(file: Path) -> None:
    with pytest.raises(ConfigError, match="teacher-server token add NAME"):
        Authority(file)


@pytest.mark.parametrize("name", ["", "a b", "../a", "a/b", "-a", "x" * 65, "a\n", "é"])
def test_names_that_are_none(name: str, file: Path) -> None:
    with pytest.raises(ConfigError, match="letters, digits"):
        add_token(file, name)
    assert not file.exists()


def test_revoking(file: Path) -> None:
    token, other = add_token(file, "ann"), add_token(file, "bob")
    authority = Authority(file)
    assert authority.identify(sent(token), dict) == "ann"
    assert revoke(file, "ann") == 1
    assert not authority.knows("ann")
    assert authority.knows("bob")
    for each in (token, token):
        with pytest.raises(Unauthenticated):
            authority.identify(sent(each), dict)
    assert authority.identify(sent(other), dict) == "bob"
    with pytest.raises(ConfigError, match="has no token"):
        revoke(file, "bob", "0" * 16)
    again = add_token(file, "ann")
    assert authority.identify(sent(again), dict) == "ann"


def run(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "teacher_server", "token", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_the_command(file: Path, tmp_path: Path) -> None:
    made = run("add", "ann", "--tokens", str(file))
    token = made.stdout.strip()
    assert Authority(file).identify(sent(token), dict) == "ann"
    assert token not in made.stderr
    own = tmp_path / "own"
    kept = run("add", "bob", "--tokens", str(file), "--output", str(own))
    assert kept.stdout == ""
    assert own.stat().st_mode & 0o777 == 0o600
    assert Authority(file).identify(sent(own.read_text().strip()), dict) == "bob"
    again = run("add", "bob", "--tokens", str(file), "--output", str(own))
    assert (again.returncode, "is there already" in again.stderr) == (1, True)
    listed = run("list", "--tokens", str(file)).stdout
    assert [line.split("\t")[0] for line in listed.splitlines()] == ["ann", "bob"]
    assert token.split("-", 2)[2] not in listed
    assert "1 token of ann revoked" in run("revoke", "ann", "--tokens", str(file)).stdout
    assert run("list", "--tokens", str(file)).stdout.splitlines()[-1] == "ann\trevoked"


def test_a_token_that_cannot_be_written_down_is_not_made(file: Path, tmp_path: Path) -> None:
    add_token(file, "ann")
    with pytest.raises(FileNotFoundError):
        add("bob", file, tmp_path / "gone" / "bob.token")
    with pytest.raises(ConfigError, match="give 1 to 64"):
        add("no name", file, tmp_path / "noname.token")
    assert [each.name for each in read_tokens(file).tokens] == ["ann"]
    assert not (tmp_path / "noname.token").exists()


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({}, "TLS .* and a list of who may call"),
        ({"tls_cert": "a", "tls_key": "b"}, "missing a list of who may call .*token add NAME"),
        ({"tokens": "t"}, r"missing TLS \(--tls-cert FILE --tls-key FILE\)\. Give that, or bind 127"),
    ],
)
@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.4", "teacher.example", "127.evil.example"])
def test_a_public_address_needs_tls_and_a_list(host: str, given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidSetting, match=sentence):
        check_bind(ServerConfig(model="m", host=host, **given))
    check_bind(ServerConfig(model="m", host=host, insecure=True, **given))


@pytest.mark.parametrize("who", [{"tokens": "t"}, {"client_ca": "c"}])
def test_a_public_address_with_both_is_bound(who: dict[str, Any]) -> None:
    check_bind(ServerConfig(model="m", host="0.0.0.0", tls_cert="a", tls_key="b", **who))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_loopback(host: str) -> None:
    assert is_loopback(host)
    check_bind(ServerConfig(model="m", host=host))


@pytest.mark.parametrize("given", [{"tls_cert": "a"}, {"tls_key": "a"}, {"client_ca": "a"}])
def test_half_of_a_pair(given: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        check_bind(ServerConfig(model="m", **given))


def test_files_that_are_no_certificates(tmp_path: Path) -> None:
    nothing = tmp_path / "nothing.pem"
    nothing.write_text("nothing")
    for path in (nothing, tmp_path / "missing.pem"):
        with pytest.raises(ConfigError, match=r"PEM|cannot be read"):
            server_credentials(ServerConfig(model="m", tls_cert=path, tls_key=path))
