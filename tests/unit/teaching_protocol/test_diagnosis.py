"""Findings, rounds of checks, certificates, and who is behind an address."""

from __future__ import annotations

import http.server
import json
import math
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from teaching_protocol.channel import check_address, split_address
from teaching_protocol.diagnosis.certificates import first_certificate, read_certificate
from teaching_protocol.diagnosis.connection import Door, check_connection, knock
from teaching_protocol.diagnosis.findings import SCHEMA, Exit, Finding, Report, Status
from teaching_protocol.diagnosis.rounds import Check, run_checks
from teaching_protocol.diagnosis.table import show
from teaching_protocol.errors import ConfigError, Overloaded
from tests.certificates import CertificateAuthority

OK = Finding("any", "ok", "well")


def report(*statuses: Status, check: str = "any") -> Report:
    return Report("doctor", "here", tuple(Finding(check, status, "said") for status in statuses))


@pytest.mark.parametrize(
    ("found", "code"),
    [
        (report("ok", "skip"), Exit.WELL),
        (report("ok", "warn"), Exit.WARNED),
        (report("warn", "fail"), Exit.FAILED),
        (report("fail", "warn", check="connection"), Exit.UNREACHED),
        (report(), Exit.WELL),
    ],
)
def test_exit_codes(found: Report, code: Exit) -> None:
    assert found.exit_code is code


def test_json_has_every_field() -> None:
    found = Report(
        "doctor", "here", (Finding("a", "warn", "slow", "hurry", {"ms": 3.5, "name": None, "nan": math.nan}),)
    )
    assert json.loads(found.as_json()) == {
        "schema": SCHEMA,
        "doctor": "doctor",
        "subject": "here",
        "status": "warn",
        "exit_code": 3,
        "findings": [
            {
                "check": "a",
                "status": "warn",
                "measured": "slow",
                "advice": "hurry",
                "values": {"ms": 3.5, "name": None, "nan": None},
            }
        ],
    }


def test_a_check_that_never_ends_is_given_up() -> None:
    never = threading.Event()

    def stuck() -> Finding:
        never.wait()
        return OK

    began = time.monotonic()
    stuck_one, after = run_checks([Check("stuck", stuck, limit_s=0.2), Check("after", lambda: OK)], 30.0)
    never.set()
    assert time.monotonic() - began < 10
    assert stuck_one.status == "fail"
    assert "0.2 s" in stuck_one.measured
    assert after.status == "ok"


def test_checks_that_are_over_end_the_one_that_runs_and_give_no_more() -> None:
    begun, ended = threading.Event(), threading.Event()

    def stuck() -> Finding:
        begun.set()
        threading.Event().wait(60.0)
        return OK

    threading.Thread(target=lambda: (begun.wait(), ended.set()), daemon=True).start()
    assert list(run_checks([Check("stuck", stuck), Check("after", lambda: OK)], 60.0, ended.is_set)) == []


def test_what_a_failed_check_was_needed_for_is_skipped() -> None:
    def refused() -> Finding:
        raise Overloaded("all 4 permits are taken; try again later")

    checks = [
        Check("first", refused),
        Check("second", lambda: OK, ("first",)),
        Check("third", lambda: OK, ("second",)),
        Check("free", lambda: OK),
    ]
    first, second, third, free = run_checks(checks, 30.0)
    assert (first.status, first.measured, first.advice) == (
        "fail",
        "Overloaded: all 4 permits are taken",
        "try again later",
    )
    assert [each.status for each in (second, third, free)] == ["skip", "skip", "ok"]


def test_a_check_with_a_bug_is_one_failure() -> None:
    (found,) = run_checks([Check("broken", lambda: Finding(**{}))], 30.0)  # type: ignore[arg-type]
    assert found.status == "fail"
    assert "TypeError" in found.measured


def test_what_the_other_side_named_itself_is_harmless_on_the_screen(capsys: pytest.CaptureFixture[str]) -> None:
    evil = Finding("teacher", "ok", "a \x1b[2J\x1b]0;mine\x07 [red]teacher[/red] [link=x]")
    assert show("doctor", "[bold]here", [evil], as_json=False) is Exit.WELL
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert "\x07" not in shown
    assert "[red]teacher[/red]" in shown


# certificates


def test_a_certificate_says_names_and_dates(tmp_path: Path) -> None:
    signed = CertificateAuthority(tmp_path, "ours").sign(
        "teacher", "DNS:localhost,IP:127.0.0.1,IP:::1,DNS:a.example", "20200102030405Z", "20601231235959Z"
    )
    found = first_certificate(signed.cert.read_text())
    assert (found.common_name, found.names) == ("teacher", ("localhost", "127.0.0.1", "::1", "a.example"))
    assert found.starts == datetime(2020, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert found.ends == datetime(2060, 12, 31, 23, 59, 59, tzinfo=UTC)
    assert found.days_left(datetime(2060, 12, 30, 23, 59, 59, tzinfo=UTC)) == 1.0


def test_a_certificate_without_names(tmp_path: Path) -> None:
    found = first_certificate(CertificateAuthority(tmp_path, "ours").sign("").cert.read_text())
    assert (found.common_name, found.names) == ("", ())


@given(st.binary(max_size=300))
def test_bytes_that_are_no_certificate(data: bytes) -> None:
    with pytest.raises(ConfigError, match=r"no X\.509 certificate"):
        read_certificate(data)


def test_a_certificate_cut_anywhere_is_none(tmp_path: Path) -> None:
    whole = ssl.PEM_cert_to_DER_cert(CertificateAuthority(tmp_path, "ours").cert.read_text())
    assert read_certificate(whole).common_name == "ours"
    for end in range(0, len(whole) - 1, 7):
        with pytest.raises(ConfigError):
            read_certificate(whole[:end])


def test_a_file_without_a_certificate() -> None:
    with pytest.raises(ConfigError, match="no PEM certificate"):
        first_certificate("-----BEGIN PRIVATE KEY-----")


# who is there


@contextmanager
def listener(behaviour: Callable[[socket.socket], None]) -> Iterator[str]:
    """A TCP server that does so with each connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                threading.Thread(target=behaviour, args=(connection,), daemon=True).start()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)
        thread.join(5)


def hang_up(connection: socket.socket) -> None:
    connection.recv(10)
    connection.close()


def say_nothing(connection: socket.socket) -> None:
    with connection:
        while connection.recv(1000):
            pass


def babble(connection: socket.socket) -> None:
    with connection:
        connection.sendall(b"220 mail.example ESMTP ready\r\n")
        connection.recv(1000)


@pytest.mark.parametrize(("behaviour", "kind"), [(hang_up, "closed"), (say_nothing, "silent"), (babble, "other")])
def test_listeners_that_are_no_grpc_server(behaviour: Callable[[socket.socket], None], kind: str) -> None:
    with listener(behaviour) as address:
        found = check_connection(Door(address), 0.5)
    assert found.status == "fail"
    assert found.values["kind"] == kind
    assert found.advice


def test_an_http_server_is_told_as_one() -> None:
    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, format: str, *values: object) -> None:
            """Says nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        assert knock(Door(f"127.0.0.1:{server.server_port}"), 2.0).kind == "http1"
        server.shutdown()
        thread.join(5)


def test_nobody_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert knock(Door(f"127.0.0.1:{port}"), 2.0).kind == "refused"


@pytest.mark.parametrize(
    "address",
    ["", "host", "host:", ":1", "host:0", "host:70000", "host:port", "http://host:1", "::1:1", "a b:1", "host:1/x"],
)
def test_addresses_that_are_none(address: str) -> None:
    for refuses in (split_address, check_address):
        with pytest.raises(ConfigError, match="expected HOST:PORT"):
            refuses(address)


def test_a_password_in_an_address_is_not_shown() -> None:
    with pytest.raises(ConfigError) as refused:
        check_address("http://me:hunter2@host:1")
    assert "hunter2" not in str(refused.value)
    assert "***@host:1" in str(refused.value)


def test_addresses_that_are_some() -> None:
    assert split_address("[::1]:50051") == ("::1", 50051)
    for address in ("127.0.0.1:1", "a.b-c_d:65535", "unix:/run/teacher", "dns:///teachers:50051", "[fe80::1%eth0]:1"):
        check_address(address)
