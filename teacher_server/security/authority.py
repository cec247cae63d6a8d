"""Who calls: a token or a client certificate as the name of an identity; knows no session and no verb.

A token's hash is slow on purpose, so it is computed once: from then on a keyed digest of the secret, kept in memory, knows it again
in microseconds. Nothing here keeps, logs or shows a secret.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from teacher_server.security.revoked import fingerprint, read_revoked
from teacher_server.security.tokens import TokenFile, TokenRecord, parse_token, read_tokens
from teacher_server.security.watched import Watched, stamp
from teaching_protocol.channel import TOKEN_KEY, TOKEN_SCHEME
from teaching_protocol.errors import ConfigError, PermissionDenied, Unauthenticated

__all__ = ["Authority"]

_log = logging.getLogger(__name__)

_SHOWN = 4096  # names whose last certificate is remembered
Metadata = Iterable[tuple[str, str | bytes]]

_WHAT_TO_DO = (
    "ask the server's operator for one (teacher-server token add NAME) and give it to the student by TEACHER_TOKEN "
    "or --token-file"
)


class Authority:
    """Names whoever calls.

    Args:
        path: the token file; None where tokens are not used.
        certificates: whether the connection proves a client certificate.
        revoked: the file of certificates that are let in no more, if there is one.
    """

    def __init__(self, path: Path | None = None, certificates: bool = False, revoked: Path | None = None) -> None:
        self.is_open = path is None and not certificates
        self._path = path
        self._certificates = certificates
        self._barred: Watched[frozenset[str]] | None = None
        if revoked is not None:
            self._barred = Watched("the list of revoked certificates", [revoked], lambda: read_revoked(revoked))
        self._shown: OrderedDict[str, str] = OrderedDict()
        self._lock = threading.Lock()
        self._one_at_a_time = threading.Lock()
        self._key = secrets.token_bytes(32)
        self._verified: dict[str, bytes] = {}
        self._records: dict[str, TokenRecord] = {}
        self._names: frozenset[str] = frozenset()
        self._revoked: frozenset[str] = frozenset()
        self._stamp: tuple[int, ...] = ()
        if path is not None:
            self._stamp = stamp(path)
            self._take(read_tokens(path))

    def identify(self, metadata: Metadata, connection: Callable[[], Mapping[str, Any]]) -> str:
        """The identity behind a call; empty where everybody is let in. May take the 40 ms of a token's hash.

        Args:
            metadata: of the call.
            connection: gives gRPC's facts about it (`auth_context`): the proven certificate, if any.

        Raises:
            Unauthenticated: no token, or none that is known here.
            PermissionDenied: a certificate that was revoked, or whose name was.
        """
        if self.is_open:
            return ""
        if self._barred is not None:
            self._check_certificate(connection())
        token = _token(metadata)
        if token is not None:
            record, secret = self._record(token)
            self._check(record, secret)
            return record.name
        name = _certified(connection()) if self._certificates else ""
        if not name:
            raise Unauthenticated(self._missing())
        if not self.knows(name):
            raise PermissionDenied("this certificate's name was revoked; ask the server's operator")
        return name

    def needs_hash(self, metadata: Metadata) -> bool:
        """Whether `identify` would have to compute a hash; cheap, and refuses at once what can be refused so.

        Raises:
            Unauthenticated: no token where there must be one, or one that is wrong for sure.
        """
        if self.is_open:
            return False
        token = _token(metadata)
        if token is None:
            if not self._certificates:
                raise Unauthenticated(self._missing())
            return False
        return not self._is_verified(*self._record(token))

    def knows(self, identity: str) -> bool:
        """Whether this identity is still let in: false once it was revoked, or the certificate that it showed last was."""
        if self.is_open:
            return True
        self._reload()
        if identity in self._revoked:
            return False
        return identity in self._names or (self._certificates and not self._is_barred(self._shown.get(identity, "")))

    def _check_certificate(self, connection: Mapping[str, Any]) -> None:
        """Refuses a revoked certificate, whatever token comes with it; remembers who shows which."""
        shown = [fingerprint(bytes(pem)) for pem in connection.get("x509_pem_cert", ())]
        if any(map(self._is_barred, shown)):
            raise PermissionDenied("this certificate was revoked; ask the server's operator")
        with self._lock:
            name = _certified(connection)
            self._shown.pop(name, None)
            self._shown[name] = "".join(shown)
            if len(self._shown) > _SHOWN:
                self._shown.popitem(last=False)

    def _is_barred(self, mark: str) -> bool:
        if self._barred is None:
            return False
        self._barred.changed()
        return mark in self._barred.content

    def _record(self, token: str) -> tuple[TokenRecord, str]:
        self._reload()
        parts = parse_token(token)
        record = self._records.get(parts[0]) if parts is not None else None
        if parts is None or record is None:
            raise Unauthenticated(f"this token is not known here: it is wrong, or was revoked; {_WHAT_TO_DO}")
        return record, parts[1]

    def _check(self, record: TokenRecord, secret: str) -> None:
        if self._is_verified(record, secret):
            return
        with self._one_at_a_time:  # strangers cost one core at most
            if not self._is_verified(record, secret):
                if not record.matches(secret):
                    raise _wrong()
                with self._lock:
                    if self._records.get(record.id) == record:
                        self._verified[record.id] = self._digest(secret)

    def _is_verified(self, record: TokenRecord, secret: str) -> bool:
        """Whether the secret was found right before; one that differs from a right one is wrong without a hash."""
        known = self._verified.get(record.id)
        if known is None:
            return False
        if not hmac.compare_digest(known, self._digest(secret)):
            raise _wrong()
        return True

    def _digest(self, secret: str) -> bytes:
        return hmac.digest(self._key, secret.encode(), hashlib.sha256)

    def _missing(self) -> str:
        if self._path is None:
            return "no client certificate with a name was shown; connect with --cert and --key of one the server's CA signed"
        return f"no token was sent, and this server asks for one; {_WHAT_TO_DO}"

    def _reload(self) -> None:
        """Takes the file in anew when it has changed. One that is gone lets nobody in; one that is broken changes nothing."""
        if self._path is None:
            return
        found = stamp(self._path)
        if found == self._stamp:
            return
        with self._lock:
            if found == self._stamp:
                return
            self._stamp = found
            try:
                self._take(read_tokens(self._path) if found else TokenFile())
                _log.info("the token file changed: %d tokens of %d names", len(self._records), len(self._names))
            except ConfigError as error:
                _log.error("the token file changed and cannot be used; what it said before holds on: %s", error)

    def _take(self, file: TokenFile) -> None:
        records = {each.id: each for each in file.tokens}
        self._verified = {
            each: digest for each, digest in self._verified.items() if self._records.get(each) == records.get(each)
        }
        self._records = records
        self._names = frozenset(each.name for each in file.tokens)
        self._revoked = frozenset(file.revoked)


def _wrong() -> Unauthenticated:
    return Unauthenticated(f"this token is not known here: it is wrong, or was revoked; {_WHAT_TO_DO}")


def _token(metadata: Metadata) -> str | None:
    """The bearer token of a call. Something else under its key counts as a wrong one."""
    found = [str(value) for key, value in metadata if key == TOKEN_KEY]
    if not found:
        return None
    scheme, _, token = found[0].partition(" ")
    return token.strip() if len(found) == 1 and scheme.lower() == TOKEN_SCHEME.lower() else ""


def _certified(connection: Mapping[str, Any]) -> str:
    """The name in a proven certificate: its common name, or else its first alternative one."""
    for field in ("x509_common_name", "x509_subject_alternative_name"):
        for value in connection.get(field, ()):
            name = bytes(value).decode("utf-8", "replace")
            if name.strip() and name.isprintable():
                return name
    return ""
