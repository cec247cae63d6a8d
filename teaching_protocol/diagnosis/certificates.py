"""What an X.509 certificate says of itself: names and dates, read out of its DER bytes; proves nothing.

The standard library decodes a certificate only after it has verified it, and a doctor is asked about those that fail.
"""

from __future__ import annotations

import ipaddress
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from teaching_protocol.errors import ConfigError

__all__ = ["Certificate", "first_certificate", "read_certificate"]

_UTC_TIME, _TIME, _VERSION, _EXTENSIONS = 0x17, 0x18, 0xA0, 0xA3
_COMMON_NAME, _ALTERNATIVE_NAMES = bytes.fromhex("550403"), bytes.fromhex("551d11")  # 2.5.4.3, 2.5.29.17
_DNS, _IP = 0x82, 0x87
_BEGIN, _END = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"


@dataclass(frozen=True)
class Certificate:
    """Names and dates. `names` are the alternative ones, DNS names and IP addresses as text."""

    common_name: str
    names: tuple[str, ...]
    starts: datetime
    ends: datetime

    def days_left(self, now: datetime | None = None) -> float:
        """Days until it ends; negative once it has."""
        return (self.ends - (now or datetime.now(UTC))).total_seconds() / 86400

    def __str__(self) -> str:
        named = ", ".join(self.names) or "no alternative name"
        return f"{self.common_name or 'no common name'} ({named}), {self.starts:%Y-%m-%d} to {self.ends:%Y-%m-%d}"


def first_certificate(pem: str) -> Certificate:
    """The first certificate of a PEM file, which is the server's own.

    Raises:
        ConfigError: there is none.
    """
    start, end = pem.find(_BEGIN), pem.find(_END)
    if start < 0 or end < start:
        raise ConfigError("the file holds no PEM certificate; give one that begins with -----BEGIN CERTIFICATE-----")
    try:
        return read_certificate(ssl.PEM_cert_to_DER_cert(pem[start : end + len(_END)]))
    except ValueError as error:
        raise ConfigError(f"the file holds no PEM certificate ({error}); make it anew") from error


def read_certificate(der: bytes) -> Certificate:
    """Reads RFC 5280's Certificate as far as names and dates.

    Raises:
        ConfigError: bytes that are none.
    """
    try:
        (whole,) = _parts(der)
        signed = next(_parts(whole[1]))
        fields = [part for part in _parts(signed[1]) if part[0] != _VERSION]
        starts, ends = (_moment(*part) for part in _parts(fields[3][1]))
        extensions = next((part[1] for part in fields if part[0] == _EXTENSIONS), b"")
        return Certificate(_common_name(fields[4][1]), _alternative_names(extensions), starts, ends)
    except (ValueError, IndexError, StopIteration) as error:
        raise ConfigError(f"{len(der)} bytes are no X.509 certificate ({error}); make it anew") from error


def _parts(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The elements of DER bytes, one behind the other: tag and content."""
    position = 0
    while position < len(data):
        tag, length, position = data[position], data[position + 1], position + 2
        if length & 0x80:
            count = length & 0x7F
            length, position = int.from_bytes(data[position : position + count], "big"), position + count
        if position + length > len(data):
            raise ValueError(f"an element of {length} bytes at byte {position}")
        yield tag, data[position : position + length]
        position += length


def _moment(tag: int, text: bytes) -> datetime:
    """UTCTime has two digits of the year, 50 and above are of the last century (RFC 5280, 4.1.2.5.1)."""
    digits = text.decode("ascii").removesuffix("Z")
    if tag == _UTC_TIME:
        digits = ("19" if int(digits[:2]) >= 50 else "20") + digits
    elif tag != _TIME:
        raise ValueError(f"a date of tag {tag}")
    return datetime.strptime(digits, "%Y%m%d%H%M%S").replace(tzinfo=UTC)


def _common_name(subject: bytes) -> str:
    for _, relative in _parts(subject):
        for _, pair in _parts(relative):
            (_, kind), (_, value) = _parts(pair)
            if kind == _COMMON_NAME:
                return _printable(value)
    return ""


def _alternative_names(extensions: bytes) -> tuple[str, ...]:
    for _, sequence in _parts(extensions):
        for _, extension in _parts(sequence):
            kind, *_, (_, octets) = _parts(extension)
            if kind[1] == _ALTERNATIVE_NAMES:
                (_, names), *_ = _parts(octets)
                return tuple(_name(tag, value) for tag, value in _parts(names) if tag in (_DNS, _IP))
    return ()


def _name(tag: int, value: bytes) -> str:
    return _printable(value) if tag == _DNS else str(ipaddress.ip_address(value))


def _printable(value: bytes) -> str:
    """As text for a terminal: whoever made the certificate chose the bytes."""
    return "".join(sign if sign.isprintable() else "?" for sign in value.decode("utf-8", "replace"))[:128]
