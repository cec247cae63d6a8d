"""Which replica of a teacher a session belongs to: rendezvous hashing, a pure choice; knows no network."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

__all__ = ["ranked"]


def ranked(key: str, names: Iterable[str]) -> list[str]:
    """Names in the order in which a key prefers them, by highest random weight.

    Every key has an order of its own over all names there could be. A name that joins takes the keys that prefer it to all
    others, one n-th of them in the mean, and no other key moves; the keys of a name that leaves spread over those that
    stay (Thaler and Ravishankar, "Using name-based mappings to increase hit rates", 1998).

    Args:
        key: what is placed, such as the name of a student.
        names: of the places; an order or a repetition among them makes no difference.
    """
    return sorted(set(names), key=lambda name: (_weight(key, name), name), reverse=True)


def _weight(key: str, name: str) -> bytes:
    told = f"{len(key)}:{key}{name}".encode()  # the length parts the two: ("a", "bc") is not ("ab", "c")
    return hashlib.sha256(told).digest()
