"""Who may read the HTTP port: everybody on loopback by its name, elsewhere who has a token; knows no page.

Tokens are those of the gRPC port, checked by the same `Authority`. A browser sends one as the password of HTTP Basic.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import ipaddress
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from teacher_server.config import ServerConfig
from teacher_server.security.authority import Authority
from teacher_server.security.tls import is_loopback
from teacher_server.web.failures import Failures
from teaching_protocol.channel import TOKEN_KEY, TOKEN_SCHEME
from teaching_protocol.errors import TeachingError

__all__ = ["Access", "Denial", "is_loopback_name", "token_of"]

_ASKS = {"www-authenticate": 'Basic realm="teacher", charset="UTF-8"'}  # what makes a browser ask its user


@dataclass(frozen=True)
class Denial:
    """Why a request is not answered: HTTP status, sentence, headers."""

    status: int
    sentence: str
    headers: Mapping[str, str] = field(default_factory=dict)


class Access:
    """Lets requests in, or says why not.

    Where the port is bound to loopback it is open, as it is to every program of this machine, but only under a name of
    loopback: a web page whose own name was made to point here (DNS rebinding) reads nothing. On another address a token
    is asked for, if the server has any; without them somebody said `--insecure`.
    """

    def __init__(self, config: ServerConfig, authority: Authority, failures: Failures | None = None) -> None:
        self._is_local = is_loopback(config.metrics_host)
        self._asks = not self._is_local and config.tokens is not None
        self._readers = config.status_identities
        self._authority = authority
        self._failures = Failures() if failures is None else failures

    async def denial(self, headers: Mapping[str, str], address: str) -> Denial | None:
        """Why a request with these headers, from this address, is denied; None lets it in."""
        if self._is_local:
            return _foreign_name(headers.get("host", ""))
        return await self._unknown(headers.get("authorization", ""), address) if self._asks else None

    async def _unknown(self, authorization: str, address: str) -> Denial | None:
        token = token_of(authorization)
        if token is None:
            return Denial(
                401, "a token is asked for here: Authorization: Bearer TOKEN, or the token as password", _ASKS
            )
        try:
            identity = await self._identity(token, address)
        except TeachingError:
            return Denial(401, "this token is not known here: it is wrong, or was revoked", _ASKS)
        if isinstance(identity, Denial):
            return identity
        if not any(fnmatchcase(identity, each) for each in self._readers):
            return Denial(403, "this token's identity may not read this; status_identities says who may")
        return None

    async def _identity(self, token: str, address: str) -> str | Denial:
        """Whose token it is. What takes the slow hash is rationed by address; a token that was right before takes none."""
        metadata = [(TOKEN_KEY, f"{TOKEN_SCHEME} {token}")]
        if not self._authority.needs_hash(metadata):
            return self._authority.identify(metadata, dict)
        delay_s = self._failures.delay_s(address)
        if delay_s:
            wait = {"retry-after": str(math.ceil(delay_s))}
            return Denial(429, f"too many wrong tokens came from this address; ask again in {delay_s:.0f} s", wait)
        try:
            return await asyncio.to_thread(self._authority.identify, metadata, dict)
        except TeachingError:
            self._failures.note(address)
            raise


def token_of(authorization: str) -> str | None:
    """The token in an Authorization header, Bearer or Basic's password; None where there is none, empty for one that is none."""
    scheme, _, value = authorization.strip().partition(" ")
    if not scheme:
        return None
    if scheme.lower() == TOKEN_SCHEME.lower():
        return value.strip()
    if scheme.lower() != "basic":
        return ""
    try:
        return base64.b64decode(value.strip(), validate=True).decode().partition(":")[2].strip()
    except (binascii.Error, UnicodeDecodeError):
        return ""


def is_loopback_name(host: str) -> bool:
    """Whether a Host header names loopback, with or without a port."""
    name = host.strip().lower()
    name = name[1:].partition("]")[0] if name.startswith("[") else name.partition(":")[0]
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _foreign_name(host: str) -> Denial | None:
    if is_loopback_name(host):
        return None
    return Denial(421, "this port is on loopback and answers to names of it alone: localhost, 127.0.0.1 or [::1]")
