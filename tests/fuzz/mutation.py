"""Bytes made from good bytes by a few random changes; the same seed makes the same bytes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

__all__ = ["mutated"]

_NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 2**31 - 1, 2**31, 2**32 - 1, 2**53, 2**63 - 1, 2**63, 2**64 - 1)

Change = Callable[[bytearray, Random, Sequence[bytes]], None]


def mutated(seeds: Sequence[bytes], random: Random) -> bytes:
    """One of the seeds after 1 to 8 changes."""
    found = bytearray(random.choice(seeds))
    for _ in range(1 + min(7, int(random.expovariate(0.7)))):
        random.choice(_CHANGES)(found, random, seeds)
    return bytes(found)


def _place(data: bytearray, random: Random) -> int:
    """Anywhere, and more often near the start, where lengths and headers are."""
    return random.randrange(min(len(data), 64) if random.random() < 0.5 else len(data)) if data else 0


def _flip(data: bytearray, random: Random, seeds: Sequence[bytes]) -> None:
    if data:
        data[_place(data, random)] ^= 1 << random.randrange(8)


def _overwrite(data: bytearray, random: Random, seeds: Sequence[bytes]) -> None:
    if data:
        data[_place(data, random)] = random.randrange(256)


def _insert(data: bytearray, random: Random, seeds: Sequence[bytes]) -> None:
    at = _place(data, random)
    data[at:at] = random.randbytes(random.randrange(1, 9))


def _remove(data: bytearray, random: Random, seeds: Sequence[bytes]) -> None:
    at = _place(data, random)
    del data[at : at + random.randrange(1, 17)]


def _cut(data: bytearray, random: Random, seeds: Sequence[bytes]) -> None:
    del data[_place(data, random) :]


def _repeat(data: bytearray, random: Random, seeds: Sequence[bytes]) -> None:
    at = _place(data, random)
    data[at:at] = data[at : at + random.randrange(1, 65)] * random.randrange(1, 5)


def _join(data: bytearray, random: Random, seeds: Sequence[bytes]) -> None:
    other = random.choice(seeds)
    at = random.randrange(len(other) + 1)
    data[_place(data, random) :] = other[at:]


def _varint(data: bytearray, random: Random, seeds: Sequence[bytes]) -> None:
    number, found = random.choice(_NUMBERS), bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    at = _place(data, random)
    data[at : at + random.randrange(2)] = bytes((*found, number))


def _number(data: bytearray, random: Random, seeds: Sequence[bytes]) -> None:
    number, size = random.choice(_NUMBERS), random.choice((2, 4, 8))
    at = _place(data, random)
    data[at : at + size] = (number % 2 ** (8 * size)).to_bytes(size, "little")


_CHANGES: tuple[Change, ...] = (_flip, _overwrite, _insert, _remove, _cut, _repeat, _join, _varint, _number)
