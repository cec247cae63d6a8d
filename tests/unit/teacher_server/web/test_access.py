"""Who may read the HTTP port: names of loopback, tokens as Bearer and Basic, patterns, and a ration of wrong ones."""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path
from typing import Any

import pytest

from teacher_server.config import ServerConfig
from teacher_server.security.authority import Authority
from teacher_server.security.tokens import TokenRecord, add_token, revoke
from teacher_server.web.access import Access, is_loopback_name, token_of
from teacher_server.web.failures import Failures


def basic(token: str, user: str = "anybody") -> str:
    return "Basic " + base64.b64encode(f"{user}:{token}".encode()).decode()


@pytest.mark.parametrize(
    ("header", "token"),
    [
        ("", None),
        ("Bearer abc", "abc"),
        ("bearer  abc ", "abc"),
        (basic("abc"), "abc"),
        (basic("abc", ""), "abc"),
        (basic("a:b"), "a:b"),
        ("Basic %%%", ""),
        ("Basic " + base64.b64encode(b"\xff\xfe").decode(), ""),
        ("Basic " + base64.b64encode(b"no colon").decode(), ""),
        ("Digest abc", ""),
        ("abc", ""),
    ],
)
def test_the_token_of_a_header(header: str, token: str | None) -> None:
    assert token_of(header) == token


@pytest.mark.parametrize(
    ("host", "is_local"),
    [
        ("localhost", True),
        ("LOCALHOST:9464", True),
        ("teacher.localhost:9464", True),
        ("127.0.0.1:9464", True),
        ("127.8.8.8", True),
        ("[::1]:9464", True),
        ("[::1]", True),
        ("evil.example:9464", False),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("notlocalhost", False),
        ("192.168.0.1", False),
        ("", False),
        ("[", False),
    ],
)
def test_names_of_loopback(host: str, is_local: bool) -> None:
    assert is_loopback_name(host) is is_local
    access = Access(ServerConfig(model="m"), Authority())
    assert status(access, "", host=host) == (None if is_local else 421)


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    return tmp_path / "tokens.json"


def public(tokens: Path | None, failures: Failures | None = None, **config: Any) -> Access:
    found = ServerConfig(model="m", metrics_host="0.0.0.0", tokens=tokens, **config)
    return Access(found, Authority(tokens), failures)


def status(access: Access, authorization: str, address: str = "a", host: str = "teacher.example") -> int | None:
    headers = {"host": host} | ({"authorization": authorization} if authorization else {})
    denial = asyncio.run(access.denial(headers, address))
    return denial.status if denial is not None else None


def test_a_public_port_asks_for_a_token(tokens: Path) -> None:
    token, wrong = add_token(tokens, "ann"), "ttk-0123456789abcdef-" + "x" * 43
    access = public(tokens)
    for given, expected in (("", 401), (f"Bearer {wrong}", 401), (f"Bearer {token}", None), (basic(token), None)):
        assert status(access, given) == expected
    denial = asyncio.run(access.denial({}, "a"))
    assert denial is not None
    assert denial.headers["www-authenticate"].startswith("Basic ")
    revoke(tokens, "ann")
    assert status(access, f"Bearer {token}") == 401


def test_a_secret_of_another_token_is_wrong(tokens: Path) -> None:
    ann, bob = add_token(tokens, "ann"), add_token(tokens, "bob")
    access = public(tokens)
    assert status(access, f"Bearer {ann[:21]}{bob[21:]}") == 401
    assert status(access, f"Bearer {ann}") is None


def test_patterns_say_who_reads(tokens: Path) -> None:
    student, operator = add_token(tokens, "ann"), add_token(tokens, "ops-eve")
    access = public(tokens, status_identities=("ops-*", "prometheus"))
    assert status(access, f"Bearer {student}") == 403
    assert status(access, f"Bearer {operator}") is None


def test_a_public_port_without_tokens_is_open() -> None:
    assert status(public(None, insecure=True), "") is None


def test_slow_hashes_are_rationed_by_address(tokens: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guesses at a known id cost a hash each, so they end; a token that was right before is never locked out."""
    ann, bob = add_token(tokens, "ann"), add_token(tokens, "bob")
    hashes = []
    matches = TokenRecord.matches
    monkeypatch.setattr(TokenRecord, "matches", lambda self, secret: hashes.append(1) or matches(self, secret))
    access = public(tokens, Failures(limit=3, within_s=1000))
    assert status(access, f"Bearer {ann}") is None
    found = [status(access, f"Bearer {bob[:21]}{index:043d}") for index in range(6)]
    assert found == [401, 401, 401, 429, 429, 429]
    assert len(hashes) == 4
    assert status(access, f"Bearer {ann}") is None
    assert status(access, f"Bearer {bob}") == 429
    assert status(access, f"Bearer {bob}", address="b") is None
    assert status(access, "", address="c") == 401


def test_tokens_of_no_known_id_cost_nothing_and_lock_nobody_out(tokens: Path) -> None:
    """A forgotten scraper with a revoked token does not shut out its neighbours behind the same address."""
    token = add_token(tokens, "ann")
    access = public(tokens, Failures(limit=1))
    for index in range(5):
        assert status(access, f"Bearer ttk-{index:016x}-{'x' * 43}") == 401
    assert status(access, f"Bearer {token}") is None


def test_a_request_without_a_token_is_no_failure(tokens: Path) -> None:
    """A browser's first request never has one."""
    token = add_token(tokens, "ann")
    access = public(tokens, Failures(limit=1))
    for _ in range(5):
        assert status(access, "") == 401
    assert status(access, basic(token)) is None
