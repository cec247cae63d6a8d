"""TLS and mTLS between a real server and the real client, with certificates that are good, and that are not."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from student_client.connection.credentials import Credentials
from student_client.connection.transport import GrpcTransport
from teacher_server.security.tokens import add_token, revoke
from teaching_protocol import verbs
from teaching_protocol.errors import ConfigError, PermissionDenied, TeacherUnavailable, Unauthenticated
from tests.calls import Caller, in_s
from tests.certificates import CertificateAuthority, Pair
from tests.integration.processes import Address, ServerProcess

LOCAL = "DNS:localhost,IP:127.0.0.1"
EXPIRED = {"start": "20200101000000Z", "end": "20210101000000Z"}


class Pki:
    """Two CAs; only the first is trusted."""

    def __init__(self, folder: Path) -> None:
        self.ca = CertificateAuthority(folder / "ours", "ours")
        self.other = CertificateAuthority(folder / "theirs", "theirs")
        self.good = self.ca.sign("teacher", LOCAL)
        self.expired = self.ca.sign("expired", LOCAL, **EXPIRED)
        self.misnamed = self.ca.sign("misnamed", "DNS:elsewhere.example")
        self.foreign = self.other.sign("foreign", LOCAL)
        self.ann = self.ca.sign("ann")
        self.bob = self.ca.sign("", "DNS:bob.students.example")
        self.nobody = self.ca.sign("")
        self.past = self.ca.sign("past", **EXPIRED)
        self.stranger = self.other.sign("ann")


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(tmp_path_factory.mktemp("pki"))


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tokens") / "tokens.json"


@pytest.fixture(scope="module")
def addresses(model_folder: Callable[[str], Path], pki: Pki, tokens: Path) -> Iterator[dict[str, Address]]:
    """One server for each of the teacher's certificates, and one that asks for clients', too."""
    add_token(tokens, "somebody")
    pairs = {
        "good": pki.good,
        "expired": pki.expired,
        "misnamed": pki.misnamed,
        "foreign": pki.foreign,
        "mutual": pki.good,
    }
    configs = {
        name: {
            "model": str(model_folder("bert")),
            "metrics_port": -1,
            "tls_cert": str(pair.cert),
            "tls_key": str(pair.key),
        }
        for name, pair in pairs.items()
    }
    configs["mutual"] |= {"client_ca": str(pki.ca.cert), "tokens": str(tokens)}
    configs["plain"] = {"model": str(model_folder("bert")), "metrics_port": -1}
    process = ServerProcess(configs)
    yield process.addresses
    assert process.close() == 0


def describe(address: Address, credentials: Credentials, host: str = "127.0.0.1") -> verbs.DescribeReply:
    transport = GrpcTransport(f"{host}:{address.port}", "none", patience_s=2.0, credentials=credentials)
    try:
        return transport.describe(verbs.DescribeRequest(), in_s(15))
    finally:
        transport.close()


def own(pki: Pki, pair: Pair | None = None) -> Credentials:
    return Credentials(ca=pki.ca.cert, cert=pair.cert if pair else None, key=pair.key if pair else None)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_right_certificate(host: str, addresses: dict[str, Address], pki: Pki) -> None:
    assert describe(addresses["good"], own(pki), host).model_hash


@pytest.mark.parametrize("name", ["expired", "misnamed", "foreign"])
def test_a_teacher_that_cannot_prove_who_it_is(name: str, addresses: dict[str, Address], pki: Pki) -> None:
    with pytest.raises(Unauthenticated, match="do not trust each other's certificates"):
        describe(addresses[name], own(pki))


def test_the_name_in_the_certificate_may_be_said(addresses: dict[str, Address], pki: Pki) -> None:
    named = Credentials(ca=pki.ca.cert, server_name="elsewhere.example")
    assert describe(addresses["misnamed"], named).model_hash


def test_without_tls_a_tls_server_is_not_reached(addresses: dict[str, Address]) -> None:
    with pytest.raises(TeacherUnavailable):
        describe(addresses["good"], Credentials())


def test_with_tls_a_plain_server_is_not_trusted(addresses: dict[str, Address], pki: Pki) -> None:
    with pytest.raises(Unauthenticated):
        describe(addresses["plain"], own(pki))


@pytest.mark.parametrize("name", ["ann", "bob"])
def test_the_right_client_certificate_is_an_identity(name: str, addresses: dict[str, Address], pki: Pki) -> None:
    credentials = own(pki, getattr(pki, name))
    transport = GrpcTransport(addresses["mutual"].name, "none", credentials=credentials)
    with Caller(transport, "student") as caller:  # both call their student so, and neither is in the other's way
        _, reply = caller.forward()
        assert reply.outputs["answer"].abs().sum() > 0
        other = own(pki, pki.bob if name == "ann" else pki.ann)
        with pytest.raises(PermissionDenied, match="opened by another identity"):
            GrpcTransport(addresses["mutual"].name, "none", credentials=other).renew(
                verbs.RenewRequest(caller.session), in_s(15)
            )
    transport.close()


@pytest.mark.parametrize("name", ["past", "stranger", None])
def test_a_client_certificate_that_is_expired_anothers_or_missing(
    name: str | None, addresses: dict[str, Address], pki: Pki
) -> None:
    """The server hangs up after the client has seen the handshake as done: all it can say is what to look at."""
    with pytest.raises(TeacherUnavailable, match=r"refuses your certificate \(teacher.cert\)"):
        describe(addresses["mutual"], own(pki, getattr(pki, name) if name else None))


def test_a_client_certificate_without_a_name(addresses: dict[str, Address], pki: Pki) -> None:
    with pytest.raises(Unauthenticated, match="no token was sent"):
        describe(addresses["mutual"], own(pki, pki.nobody))


def test_a_revoked_name_bars_its_certificate(addresses: dict[str, Address], pki: Pki, tokens: Path) -> None:
    carl = own(pki, pki.ca.sign("carl"))
    assert describe(addresses["mutual"], carl).model_hash
    revoke(tokens, "carl")
    with pytest.raises(PermissionDenied, match="was revoked"):
        describe(addresses["mutual"], carl)


def test_a_token_over_tls_counts_before_the_certificate(
    addresses: dict[str, Address], pki: Pki, tokens: Path, tmp_path: Path
) -> None:
    path = tmp_path / "token"
    path.touch(mode=0o600)
    path.write_text(add_token(tokens, "tess"))
    with_token = dataclasses.replace(own(pki, pki.ann), token_file=path)
    with Caller(GrpcTransport(addresses["mutual"].name, "none", credentials=with_token), "student") as caller:
        assert caller.forward()[1].outputs
        by_certificate = GrpcTransport(addresses["mutual"].name, "none", credentials=own(pki, pki.ann))
        with pytest.raises(PermissionDenied, match="opened by another identity"):
            by_certificate.renew(verbs.RenewRequest(caller.session), in_s(15))
    path.write_text("ttk-0123456789abcdef-" + "x" * 43)
    with pytest.raises(Unauthenticated, match="not known here"):
        describe(addresses["mutual"], with_token)


def test_a_key_of_another_certificate_is_found_before_anything_is_sent(pki: Pki) -> None:
    mixed = Credentials(ca=pki.ca.cert, cert=pki.ann.cert, key=pki.bob.key)
    with pytest.raises(ConfigError, match="a key with its own certificate"):
        GrpcTransport("127.0.0.1:1", credentials=mixed)


def test_health_is_open_to_whoever_gets_a_connection(addresses: dict[str, Address], pki: Pki) -> None:
    proof = grpc.ssl_channel_credentials(
        pki.ca.cert.read_bytes(), pki.nobody.key.read_bytes(), pki.nobody.cert.read_bytes()
    )
    with grpc.secure_channel(addresses["mutual"].name, proof) as channel:
        reply = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
    assert reply.status == health_pb2.HealthCheckResponse.SERVING
