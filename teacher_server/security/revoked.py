"""The list of clients' certificates that are let in no more, by their fingerprints; knows no call."""

from __future__ import annotations

import hashlib
import re
import ssl
from pathlib import Path

from teaching_protocol.errors import ConfigError

__all__ = ["fingerprint", "read_revoked"]

_FILE_BYTES = 16 * 2**20
_FINGERPRINT = re.compile("[0-9a-f]{64}")


def fingerprint(pem: bytes) -> str:
    """SHA-256 of a certificate, as `openssl x509 -noout -fingerprint -sha256` prints it, in small letters without colons."""
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem.decode("ascii"))).hexdigest()


def read_revoked(path: Path) -> frozenset[str]:
    """The fingerprints a file lists, one a line, as openssl prints them; `#` begins a comment.

    Raises:
        ConfigError: a file that cannot be read, or a line that is no fingerprint.
    """
    try:
        if path.stat().st_size > _FILE_BYTES:
            raise ConfigError(
                f"revoked_certs {path} has more than {_FILE_BYTES} bytes; let certificates be short-lived"
            )
        lines = path.read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"revoked_certs {path} cannot be read: {type(error).__name__}") from error
    found = [(number, line.partition("#")[0].strip()) for number, line in enumerate(lines, 1)]
    return frozenset(_parsed(path, number, text) for number, text in found if text)


def _parsed(path: Path, number: int, text: str) -> str:
    mark = text.rpartition("=")[2].replace(":", "").strip().lower()
    if not _FINGERPRINT.fullmatch(mark):
        raise ConfigError(
            f"revoked_certs {path}, line {number}: received {text[:80]!r}, expected a fingerprint as printed by: "
            "openssl x509 -noout -fingerprint -sha256 -in CERTIFICATE"
        )
    return mark
