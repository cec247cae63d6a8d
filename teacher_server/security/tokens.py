"""The file of tokens: salted hashes by name, written whole or not at all; knows no call.

A token is `ttk-ID-SECRET`. The file holds the id, a salt and scrypt(secret), so whoever reads the file can use none of it. The
secret has 256 random bits: nobody guesses it, hash or no hash; the hash is for the file that leaks.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import secrets
import stat
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from teaching_protocol.errors import ConfigError

__all__ = ["TokenFile", "TokenRecord", "add_token", "parse_token", "read_tokens", "revoke"]

_VERSION = 1
_PREFIX = "ttk"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_TOKEN = re.compile(_PREFIX + r"-([0-9a-f]{16})-([A-Za-z0-9_-]{43})")
_COST, _BLOCK, _LANES = 2**14, 8, 1  # scrypt's n, r, p: 16 MiB and some 40 ms, once a token and server
_FILE_BYTES = 16 * 2**20


class TokenRecord(BaseModel):
    """One token as the file knows it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=f"^{_NAME.pattern}$", description="The identity it stands for.")
    id: str = Field(pattern="^[0-9a-f]{16}$", description="Finds the record; no secret.")
    salt: str = Field(pattern="^[0-9a-f]{32}$", repr=False, description="Of this token alone.")
    hash: str = Field(pattern="^[0-9a-f]{64}$", repr=False, description="scrypt of the secret.")
    created: str = Field(description="When it was made, UTC.")

    def matches(self, secret: str) -> bool:
        """Whether this is the token's secret; takes the same time whatever differs, and some 40 ms."""
        return hmac.compare_digest(_hashed(secret, bytes.fromhex(self.salt)), bytes.fromhex(self.hash))


class TokenFile(BaseModel):
    """All of it: tokens, and the names that are barred, whose certificates count no more either."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int = Field(default=_VERSION, ge=_VERSION, le=_VERSION)
    tokens: tuple[TokenRecord, ...] = ()
    revoked: tuple[str, ...] = ()


def parse_token(text: str) -> tuple[str, str] | None:
    """Id and secret of a token, or None if it is none."""
    found = _TOKEN.fullmatch(text)
    return (found[1], found[2]) if found is not None else None


def read_tokens(path: Path) -> TokenFile:
    """Reads the file.

    Raises:
        ConfigError: it is not there, is no token file, or others than its owner may write to it.
    """
    try:
        mode = path.stat().st_mode
        text = path.read_bytes()[: _FILE_BYTES + 1]
    except OSError as error:
        raise ConfigError(
            f"token file {path} cannot be read ({error.strerror}); make one: teacher-server token add NAME --tokens {path}"
        ) from error
    if mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ConfigError(f"token file {path} may be written by others (mode {stat.S_IMODE(mode):o}); chmod 600 {path}")
    try:
        return TokenFile.model_validate_json(text)
    except ValidationError as error:
        fault = error.errors()[0]
        where = ": ".join(filter(None, (".".join(map(str, fault["loc"])), str(fault["msg"]))))
        raise ConfigError(
            f"{path} is no token file ({where}); restore it, or make a new one: teacher-server token add NAME"
        ) from error


def add_token(path: Path, name: str) -> str:
    """Adds a token for a name, which may have several; lifts the bar on a name that was revoked.

    Returns:
        the token: the only time that its secret is known.

    Raises:
        ConfigError: a name that is none, or a file that cannot be used.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(f"name {name[:80]!r}: give 1 to 64 letters, digits and ._@-, the first a letter or digit")
    with _locked(path):
        known = read_tokens(path) if path.exists() else TokenFile()
        secret, salt, mark = secrets.token_urlsafe(32), secrets.token_bytes(16), secrets.token_hex(8)
        created = datetime.now(UTC).isoformat(timespec="seconds")
        record = TokenRecord(name=name, id=mark, salt=salt.hex(), hash=_hashed(secret, salt).hex(), created=created)
        revoked = tuple(each for each in known.revoked if each != name)
        _write(path, TokenFile(tokens=(*known.tokens, record), revoked=revoked))
    return f"{_PREFIX}-{mark}-{secret}"


def revoke(path: Path, name: str, token_id: str | None = None) -> int:
    """Takes a name's tokens away (or the one of an id) and bars the name, unless a token of it is left.

    Returns:
        how many tokens were taken away; a name without any is barred all the same, for its certificates.

    Raises:
        ConfigError: a name that is none, an id that is not this name's, or a file that cannot be used.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(f"name {name[:80]!r} is none that a token can have; teacher-server token list shows them")
    with _locked(path):
        known = read_tokens(path)
        gone = [each for each in known.tokens if each.name == name and token_id in (None, each.id)]
        if token_id is not None and not gone:
            raise ConfigError(f"{name} has no token {token_id[:40]!r}; teacher-server token list shows the ids")
        left = tuple(each for each in known.tokens if each not in gone)
        is_barred = all(each.name != name for each in left)
        revoked = {*known.revoked, name} if is_barred else set(known.revoked)
        _write(path, TokenFile(tokens=left, revoked=tuple(sorted(revoked))))
    return len(gone)


def _hashed(secret: str, salt: bytes) -> bytes:
    return hashlib.scrypt(secret.encode(), salt=salt, n=_COST, r=_BLOCK, p=_LANES, dklen=32)


def _locked(path: Path) -> FileLock:
    if not path.parent.is_dir():
        raise ConfigError(f"token file {path}: {path.parent} is no folder; make it first")
    return FileLock(f"{path}.lock", timeout=10, mode=0o600)


def _write(path: Path, file: TokenFile) -> None:
    """Writes a new file beside it and puts it in its place: a reader sees the old one or the new one."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mode 600
    try:
        with os.fdopen(descriptor, "w") as new:
            new.write(json.dumps(file.model_dump(), indent=1) + "\n")
            new.flush()
            os.fsync(new.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
