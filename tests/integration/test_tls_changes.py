"""Certificates that are replaced or revoked while a server runs; real files, real handshakes, no restart."""

from __future__ import annotations

import logging
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from student_client.connection.credentials import Credentials
from student_client.connection.transport import GrpcTransport
from teacher_server.app import TeacherApp
from teacher_server.config import ServerConfig
from teacher_server.models.split import FrozenTeacher
from teacher_server.security.revoked import fingerprint, read_revoked
from teacher_server.security.tls import check_bind
from teacher_server.security.tokens import add_token
from teaching_protocol import verbs
from teaching_protocol.errors import ConfigError, PermissionDenied, SessionNotFound, TeacherUnavailable, Unauthenticated
from tests.calls import Caller, attempt, in_s
from tests.certificates import CertificateAuthority, Pair
from tests.integration.gate import poll

LOCAL = "DNS:localhost,IP:127.0.0.1"


@dataclass
class House:
    """A server that asks for certificates, and the files it reads; `log` is what it said."""

    app: TeacherApp
    ca: CertificateAuthority
    cert: Path
    key: Path
    client_ca: Path
    revoked: Path
    tokens: Path
    log: Callable[[], list[str]]

    def credentials(self, pair: Pair, token: Path | None = None) -> Credentials:
        return Credentials(ca=self.ca.cert, cert=pair.cert, key=pair.key, token_file=token)

    def transport(self, pair: Pair, token: Path | None = None) -> GrpcTransport:
        """A connection of its own."""
        address = f"127.0.0.1:{self.app.port}"
        return GrpcTransport(address, "none", patience_s=0.3, credentials=self.credentials(pair, token))

    def install(self, pair: Pair) -> None:
        """As a renewal does it: each file replaced whole, the key after the certificate."""
        for new, place in ((pair.cert, self.cert), (pair.key, self.key)):
            draft = place.with_suffix(".new")
            shutil.copy(new, draft)
            draft.rename(place)

    def describe(self, pair: Pair) -> verbs.DescribeReply:
        transport = self.transport(pair)
        try:
            return transport.describe(verbs.DescribeRequest(), in_s(10))
        finally:
            transport.close()


@pytest.fixture
def house(bert: FrozenTeacher, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Iterator[House]:
    """It begins with a certificate that has expired."""
    ca = CertificateAuthority(tmp_path / "ca", "ours")
    cert, key, client_ca, revoked, tokens = (
        tmp_path / name for name in ("teacher.pem", "teacher.key", "clients.pem", "revoked", "tokens")
    )
    old = ca.sign("teacher", LOCAL, start="20200101000000Z", end="20210101000000Z")
    for source, place in ((old.cert, cert), (old.key, key), (ca.cert, client_ca)):
        shutil.copy(source, place)
    revoked.write_text("# nobody yet\n")
    add_token(tokens, "somebody")
    config = ServerConfig(
        model="tiny", port=0, metrics_port=-1, threads=1, tls_cert=cert, tls_key=key, client_ca=client_ca
    ).model_copy(update={"revoked_certs": revoked, "tokens": tokens})

    def log() -> list[str]:
        return [each.getMessage() for each in caplog.records if each.name.endswith("watched")]

    with caplog.at_level(logging.INFO), TeacherApp(config, bert) as app:
        yield House(app, ca, cert, key, client_ca, revoked, tokens, log)


def test_a_new_certificate_is_taken_without_a_restart(house: House) -> None:
    ann = house.ca.sign("ann")
    with pytest.raises(Unauthenticated, match="CERTIFICATE_VERIFY_FAILED"):
        house.describe(ann)
    house.install(house.ca.sign("teacher", LOCAL))
    transport = house.transport(ann)
    with Caller(transport, "student") as caller:
        house.install(house.ca.sign("teacher", "DNS:elsewhere.example"))
        with pytest.raises(Unauthenticated, match="do not trust"):
            house.describe(ann)
        assert caller.forward()[1].outputs, "a connection that is open stays as it is"
        house.install(house.ca.sign("teacher", LOCAL))
        assert house.describe(ann).model_hash
    transport.close()


@pytest.mark.parametrize("broken", ["half a certificate", "another's key", "no key", "empty"])
def test_a_pair_that_is_broken_changes_nothing_and_is_said_once(house: House, broken: str) -> None:
    ann, good = house.ca.sign("ann"), house.ca.sign("teacher", LOCAL)
    house.install(good)
    assert house.describe(ann).model_hash
    before = len(house.log())
    if broken == "half a certificate":
        house.cert.write_bytes(good.cert.read_bytes()[:200])
    elif broken == "another's key":
        shutil.copy(house.ca.sign("teacher", LOCAL).key, house.key)
    elif broken == "no key":
        house.key.unlink()
    else:
        house.cert.write_bytes(b"")
    for _ in range(3):
        assert house.describe(ann).model_hash
    said = house.log()[before:]
    assert len(said) == 1, said
    assert "cannot be used; what was there before holds on" in said[0]
    assert "PRIVATE KEY" not in said[0]
    house.install(house.ca.sign("teacher", LOCAL))
    assert house.describe(ann).model_hash
    assert "used from now on" in house.log()[-1]


def test_another_ca_of_the_students_is_taken_without_a_restart(house: House, tmp_path: Path) -> None:
    theirs = CertificateAuthority(tmp_path / "theirs", "theirs")
    ours, guest = house.ca.sign("ann"), theirs.sign("guest")
    house.install(house.ca.sign("teacher", LOCAL))
    assert house.describe(ours).model_hash
    with pytest.raises(TeacherUnavailable, match="refuses your certificate"):
        house.describe(guest)
    house.client_ca.write_bytes(house.ca.cert.read_bytes() + theirs.cert.read_bytes())
    assert house.describe(guest).model_hash
    house.client_ca.write_bytes(theirs.cert.read_bytes())
    with pytest.raises(TeacherUnavailable, match="refuses your certificate"):
        house.describe(ours)


def bar(house: House, pair: Pair) -> None:
    """As the document says: the line that openssl prints, appended."""
    words = ["openssl", "x509", "-noout", "-fingerprint", "-sha256", "-in", str(pair.cert)]
    with house.revoked.open("a") as file:
        subprocess.run(words, stdout=file, check=True, timeout=20)
    assert fingerprint(pair.cert.read_bytes()) in read_revoked(house.revoked)


def test_a_revoked_certificate_is_refused_and_its_sessions_end(house: House) -> None:
    """On connections that are open, too; another certificate of the same name is let in."""
    house.install(house.ca.sign("teacher", LOCAL))
    stolen, other = house.ca.sign("ann"), house.ca.sign("bob")
    transport, fine = house.transport(stolen), house.transport(other)
    session, kept = Caller(transport, "student").__enter__(), Caller(fine, "student").__enter__()
    bar(house, stolen)
    for connection in (transport, house.transport(stolen)):
        with pytest.raises(PermissionDenied, match="this certificate was revoked"):
            connection.renew(verbs.RenewRequest(session.session), in_s(10))
    poll(lambda: len(house.app.actor.sessions) == 1, "its session ends")
    assert kept.forward()[1].outputs
    renewed = house.transport(house.ca.sign("ann"))
    found = attempt(lambda: renewed.renew(verbs.RenewRequest(session.session), in_s(10)))
    assert isinstance(found, SessionNotFound)
    with Caller(renewed, "student") as again:
        assert again.forward()[1].outputs
        house.app.actor.reap(house.app._authority.knows)
        assert again.forward()[1].outputs


def test_a_token_does_not_make_a_revoked_certificate_good(house: House, tmp_path: Path) -> None:
    house.install(house.ca.sign("teacher", LOCAL))
    token = tmp_path / "tess.token"
    token.touch(mode=0o600)
    token.write_text(add_token(house.tokens, "tess"))
    stolen = house.ca.sign("ann")
    bar(house, stolen)
    with pytest.raises(PermissionDenied, match="this certificate was revoked"):
        house.transport(stolen, token).describe(verbs.DescribeRequest(), in_s(10))
    assert house.transport(house.ca.sign("ann"), token).describe(verbs.DescribeRequest(), in_s(10)).model_hash


@pytest.mark.parametrize("broken", ["gone", "no fingerprint"])
def test_a_list_that_is_broken_goes_on_barring(house: House, broken: str) -> None:
    house.install(house.ca.sign("teacher", LOCAL))
    stolen, ann = house.ca.sign("eve"), house.ca.sign("ann")
    bar(house, stolen)
    with pytest.raises(PermissionDenied):
        house.describe(stolen)
    if broken == "gone":
        house.revoked.unlink()
    else:
        house.revoked.write_text("eve\n")
    with pytest.raises(PermissionDenied):
        house.describe(stolen)
    assert house.describe(ann).model_hash
    assert sum("the list of revoked certificates changed and cannot be used" in each for each in house.log()) == 1


def test_lists_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "revoked"
    with pytest.raises(ConfigError, match="cannot be read: FileNotFoundError"):
        read_revoked(path)
    for text in ("ab:cd", "f" * 63, "g" * 64, "serial=01"):
        path.write_text(f"# a comment\n\n{text}\n")
        with pytest.raises(ConfigError, match=r"line 3: received .*, expected a fingerprint as printed by: openssl"):
            read_revoked(path)
    path.write_text(f"{'AB:' * 31}AB  # ann's\n")
    assert read_revoked(path) == {"ab" * 32}


def test_a_list_needs_certificates(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="revoked_certs is a list of clients' certificates"):
        check_bind(ServerConfig(model="tiny", revoked_certs=tmp_path / "revoked"))
