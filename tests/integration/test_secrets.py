"""No secret comes out anywhere: a live session over TLS with tokens, errors provoked on purpose, and all that was said searched."""

from __future__ import annotations

import dataclasses
import io
import json
import logging
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import prometheus_client
import pytest
import torch

from student_client.connection.credentials import Credentials
from student_client.connection.transport import GrpcTransport
from student_client.teachers.remote import RemoteTeacher
from teacher_server.app import TeacherApp
from teacher_server.config import ServerConfig
from teacher_server.logs import JsonLines, TextLines, facts_of
from teacher_server.models.split import FrozenTeacher
from teacher_server.security.tokens import add_token, read_tokens, revoke
from teaching_protocol import verbs
from teaching_protocol.errors import PermissionDenied, StaleEpoch, StateMismatch, TeachingError, Unauthenticated
from tests.calls import WIDTH, Caller, in_s
from tests.certificates import CertificateAuthority, Pair
from tests.integration.gate import poll
from tests.unit.student_client.run_setup import run_config

LOCAL = "DNS:localhost,IP:127.0.0.1"


@dataclass
class Place:
    """A server with TLS, client certificates and tokens; `said` is its whole log, as text and as JSON, down to debug."""

    app: TeacherApp
    ca: CertificateAuthority
    pair: Pair
    server: Pair
    tokens: Path
    folder: Path
    said: tuple[io.StringIO, io.StringIO]
    secrets: dict[str, str] = field(default_factory=dict)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.app.port}"

    def token(self, name: str) -> Path:
        """A new token of a name, in a file; what of it must not be seen is noted."""
        path = self.folder / f"{name}.token"
        path.touch(mode=0o600)
        path.write_text(add_token(self.tokens, name))
        self.note(f"the token of {name}", path.read_text().split("-", 2)[2])
        for record in read_tokens(self.tokens).tokens:
            self.note(f"the salt of {record.name}", record.salt)
            self.note(f"the hash of {record.name}", record.hash)
        return path

    def credentials(self, token: Path | None) -> Credentials:
        return Credentials(ca=self.ca.cert, cert=self.pair.cert, key=self.pair.key, token_file=token)

    def transport(self, token: Path | None) -> GrpcTransport:
        return GrpcTransport(self.address, "none", patience_s=0.2, credentials=self.credentials(token))

    def note(self, what: str, secret: str) -> None:
        assert len(secret) >= 16, what
        self.secrets[what] = secret

    def note_key(self, path: Path) -> None:
        for number, line in enumerate(path.read_text().splitlines()):
            if len(line) > 40 and "-----" not in line:
                self.note(f"line {number} of {path.name}", line)


@pytest.fixture
def place(bert: FrozenTeacher, tmp_path: Path) -> Iterator[Place]:
    ca = CertificateAuthority(tmp_path / "ca", "ours")
    server, own, tokens = ca.sign("teacher", LOCAL), ca.sign("ann"), tmp_path / "tokens.json"
    add_token(tokens, "somebody")
    config = ServerConfig(
        model="tiny", entry=1, exit=3, port=0, metrics_port=-1, threads=1, tls_cert=server.cert, tls_key=server.key
    ).model_copy(update={"client_ca": ca.cert, "tokens": tokens, "alone_strikes": 10**6, "refused_strikes": 10**6})
    root, said = logging.getLogger(), (io.StringIO(), io.StringIO())
    handlers = [logging.StreamHandler(each) for each in said]
    level = root.level
    for handler, lines in zip(handlers, (TextLines(), JsonLines()), strict=True):
        handler.setFormatter(lines)
        root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    try:
        with TeacherApp(config, bert) as app:
            found = Place(app, ca, own, server, tokens, tmp_path, said)
            found.note_key(server.key)
            found.note_key(own.key)
            yield found
    finally:
        root.setLevel(level)
        for handler in handlers:
            root.removeHandler(handler)


def told(error: BaseException) -> str:
    """All that an exception says: itself, what it came from, every frame."""
    return "".join(traceback.TracebackException.from_exception(error, capture_locals=False).format()) + repr(error)


def provoked(place: Place, mine: Path, other: Path) -> str:
    """Everything goes wrong once; what the student hears of it."""
    heard: list[str] = []

    def fails(kind: type[TeachingError], call: Callable[[], Any]) -> None:
        with pytest.raises(kind) as found:
            call()
        heard.append(told(found.value))

    wrong = place.folder / "wrong.token"
    wrong.touch(mode=0o600)
    wrong.write_text(mine.read_text().replace("ttk-", "ttk-0")[:70])
    place.note("a wrong token", wrong.read_text()[25:60])
    describe = verbs.DescribeRequest()
    fails(Unauthenticated, lambda: place.transport(wrong).describe(describe, in_s(10)))
    mixed = f"{mine.read_text()[:21]}{other.read_text()[21:]}"
    wrong.write_text(mixed)
    fails(Unauthenticated, lambda: place.transport(wrong).describe(describe, in_s(10)))
    with Caller(place.transport(mine), "student") as caller:
        place.note("a session's id", caller.session.session_id)
        stranger = place.transport(other)
        fails(PermissionDenied, lambda: stranger.renew(verbs.RenewRequest(caller.session), in_s(10)))
        fails(StateMismatch, lambda: caller.teacher.import_(verbs.ImportRequest(caller.session, b"x" * 99), in_s(10)))
        resume = verbs.EnrollRequest("student", resume=caller.session.session_id)
        caller.teacher.enroll(resume, in_s(10))
        fails(StaleEpoch, caller.forward)
        caller.session = dataclasses.replace(caller.session, epoch=2)
        hook = place.app._engine.teacher.family.blocks[1].register_forward_pre_hook(_break)  # type: ignore[attr-defined]
        fails(TeachingError, caller.forward)
        hook.remove()
        heard.append(repr((caller.session, resume, caller.teacher, place.app.actor.sessions.live())))
        heard.append(repr(caller.teacher.describe(describe, in_s(10))).split("same_host=")[0])
    bytes_of = Credentials(ca=place.ca.cert, cert=place.pair.cert, key=place.server.key)
    fails(TeachingError, lambda: GrpcTransport(place.address, credentials=bytes_of))
    mine.chmod(0o644)
    fails(TeachingError, lambda: place.transport(mine).describe(describe, in_s(10)))
    mine.chmod(0o600)
    whole = place.tokens.read_text()
    place.tokens.write_text(whole[:-9])
    place.transport(other).describe(describe, in_s(10))
    place.tokens.write_text(whole)
    key = place.server.key.read_bytes()
    place.server.key.write_bytes(key[:80])
    place.transport(other).describe(describe, in_s(10))
    place.server.key.write_bytes(key)
    return "".join(heard)


def _break(*_: Any) -> None:
    raise RuntimeError("a bug")


def test_nothing_that_opens_a_door_comes_out(place: Place) -> None:
    """Logs of both kinds at debug level, metrics, errors with their causes, `repr`, the card."""
    mine, other = place.token("mine"), place.token("other")
    heard = provoked(place, mine, other)
    with RemoteTeacher(
        place.address, student="resumed", credentials=place.credentials(mine), message_width=WIDTH
    ) as teacher:
        place.note("another session's id", teacher.session.session_id)
        teacher.enroll(resume=teacher.session.session_id)  # as a run does that lost its teacher
        teacher.import_state(teacher.export_state())
        assert teacher(torch.ones(1, 2, WIDTH)).shape == (1, 2, WIDTH)
        heard += repr(
            (teacher, teacher._session, teacher._session.__dict__.get("ref"), place.app, place.app._authority)
        )
    revoke(place.tokens, "mine")
    with pytest.raises(Unauthenticated) as gone:
        place.transport(mine).describe(verbs.DescribeRequest(), in_s(10))
    heard += told(gone.value) + repr(place.app.config) + repr(place.credentials(mine))
    text, lines = (each.getvalue() for each in place.said)
    metrics = prometheus_client.generate_latest(place.app.metrics.registry).decode()
    for name, where in {"log": text, "JSON log": lines, "metrics": metrics, "errors and repr": heard}.items():
        found = [what for what, secret in place.secrets.items() if secret in where]
        assert not found, f"{name} holds {', '.join(found)}"
    assert "internal error" in heard
    assert "RuntimeError: a bug" in text
    assert "Enroll: done" in text
    assert "cannot be used" in text
    assert all(isinstance(json.loads(line), dict) for line in lines.splitlines())


def test_a_run_writes_none_down_and_shows_none(place: Place) -> None:
    """A whole run as the command does it, its token in the environment: command line, output, every file it leaves."""
    token, output = place.token("runner"), place.folder / "run"
    fields = {"ca": place.ca.cert, "cert": place.pair.cert, "key": place.pair.key, "address": place.address}
    named = {f"teacher__{name}": value for name, value in fields.items()}
    config = run_config(place.folder, "run", "talking", training__tensorboard=True, **named)
    path = place.folder / "run.json"
    path.write_text(config.model_dump_json())
    words = [sys.executable, "-m", "student_client", "train", "--config", str(path)]
    environment = os.environ | {"TEACHER_TOKEN": token.read_text()}
    with subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as run:
        poll(lambda: run.poll() is not None or len(place.app.actor.sessions), "it enrols", 100)
        for session in place.app.actor.sessions.live():
            place.note(f"the session of {session.student}", session.id)
        shown = [Path(f"/proc/{run.pid}/cmdline").read_bytes().decode(), run.communicate(timeout=100)[0]]
    assert run.returncode == 0, shown[-1]
    assert any(what.startswith("the session") for what in place.secrets)
    files = [path for path in output.rglob("*") if path.is_file()]
    assert {"result.json", "metrics.jsonl", "config.json"} <= {path.name for path in files}
    assert list((output / "tensorboard").glob("events*"))
    assert list((output / "checkpoints").glob("step-*"))
    shown += [path.read_bytes().decode("latin-1") for path in files] + [each.getvalue() for each in place.said]
    for where in shown:
        found = [what for what, secret in place.secrets.items() if secret in where]
        assert not found, f"{', '.join(found)} in {where[:200]!r}"


def test_a_call_id_that_holds_a_sessions_id_is_not_written() -> None:
    """Clients of before made the id of an Enroll from it."""
    secret = "5e" * 16
    for request in (
        verbs.EnrollRequest("ann", resume=secret, call_id=f"run-{secret}-1"),
        verbs.ForwardRequest(verbs.SessionRef(secret, 1), f"call-{secret}"),
    ):
        assert secret not in str(facts_of("Enroll", request, "ann", "student", None))
