"""Whether the two sides of a connection trust each other: handshake, names, dates; knows no token."""

from __future__ import annotations

import ipaddress
import ssl

from teaching_protocol.channel import split_address
from teaching_protocol.diagnosis.certificates import Certificate, read_certificate
from teaching_protocol.diagnosis.connection import Door, hello, knock
from teaching_protocol.diagnosis.findings import Finding, Value
from teaching_protocol.errors import ConfigError

__all__ = ["DAYS_LEFT", "check_tls", "is_here"]

DAYS_LEFT = 14
"""A certificate that ends sooner is a warning."""

_NOT_YET, _EXPIRED, _NAME, _ADDRESS = 9, 10, 62, 64  # X509_V_ERR_* of OpenSSL


def check_tls(door: Door, limit_s: float) -> Finding:
    """The handshake as a student makes it, and the certificate's name and days left."""
    if not door.uses_tls:
        return _without_tls(door, limit_s)
    limit_s = min(limit_s, 5.0)
    try:
        with hello(door, limit_s, verified=True) as connection:
            shown = connection.getpeercert(binary_form=True) or b""
            version = connection.version() or ""
    except ssl.SSLCertVerificationError as error:
        return _distrusted(door, limit_s, error)
    except TimeoutError:
        return Finding("tls", "fail", "the handshake did not end in time", "see whether the process behind it hangs")
    except (ssl.SSLError, OSError) as error:
        return _refused(door, limit_s, error)
    return _dated(read_certificate(shown), version)


def is_here(address: str) -> bool:
    """Whether an address never leaves this machine."""
    host, _ = split_address(address)
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _without_tls(door: Door, limit_s: float) -> Finding:
    if knock(door, min(limit_s, 5.0)).kind == "tls":
        advice = "give --ca with the PEM file of the CA that signed its certificate"
        return Finding("tls", "fail", "the server speaks TLS, and TLS is off on this side", advice, {"tls": True})
    if is_here(door.address):
        return Finding("tls", "ok", "no TLS, and the address never leaves this machine", "", {"tls": False})
    advice = "serve with --tls-cert and --tls-key (docs/security.md), or be sure that the network is trusted"
    return Finding("tls", "warn", "no TLS: whoever is on the way can read all that is said", advice, {"tls": False})


def _dated(certificate: Certificate, version: str) -> Finding:
    days = certificate.days_left()
    values = _values(certificate) | {"version": version}
    measured = f"{version}; the certificate of {certificate} is trusted, {days:.0f} days are left"
    if days < DAYS_LEFT:
        return Finding(
            "tls", "warn", measured, "make a new certificate before it ends, and restart the teacher", values
        )
    return Finding("tls", "ok", measured, "", values)


def _distrusted(door: Door, limit_s: float, error: ssl.SSLCertVerificationError) -> Finding:
    advice = {
        _EXPIRED: "make a new certificate for the teacher, and restart it",
        _NOT_YET: "set the clocks of both machines, or wait: the certificate begins later",
    }.get(error.verify_code)
    if error.verify_code in (_NAME, _ADDRESS):
        advice = "reach the teacher by a name that its certificate has, or sign one that has this name"
    shown = _shown(door, limit_s)
    values = _values(shown) | {"verify_code": error.verify_code}
    measured = f"the certificate is not trusted: {error.verify_message}" + (f"; it is of {shown}" if shown else "")
    return Finding("tls", "fail", measured, advice or "give --ca with the CA that signed the certificate", values)


def _refused(door: Door, limit_s: float, error: OSError) -> Finding:
    reason = getattr(error, "reason", None) or str(error)
    if knock(Door(door.address), limit_s).kind == "grpc":
        advice = "leave --ca away, or serve with --tls-cert and --tls-key"
        return Finding("tls", "fail", "the server speaks no TLS, and TLS is on on this side", advice, {"tls": False})
    if door.cert is None:
        advice = "the server wants a certificate of yours: give --cert and --key of one that its client CA signed"
    else:
        advice = "give --cert and --key of a certificate that the server's client CA signed and that has not ended"
    return Finding("tls", "fail", f"the server ends the handshake ({reason})", advice, {"tls": True})


def _shown(door: Door, limit_s: float) -> Certificate | None:
    try:
        return read_certificate(knock(door, limit_s).certificate)
    except ConfigError:
        return None


def _values(certificate: Certificate | None) -> dict[str, Value]:
    if certificate is None:
        return {"tls": True}
    return {
        "tls": True,
        "common_name": certificate.common_name,
        "names": ", ".join(certificate.names),
        "ends": certificate.ends.isoformat(),
        "days_left": round(certificate.days_left(), 2),
    }
