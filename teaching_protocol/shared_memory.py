"""Messages in memory that two processes of one host share; knows no gRPC, no verb and no session.

A block is an anonymous file (memfd) that its maker has sealed against resizing, mapped by both processes and closed at once: it
has no name and no descriptor, so the kernel frees it when the last of the two is gone, however it ends. The server copies a request
out before it looks at it: a student that writes behind its back garbles its own message and nothing else. The student, who
trusts its teacher, reads the reply where it lies.
"""

from __future__ import annotations

import ctypes
import fcntl
import functools
import hashlib
import hmac
import mmap
import os
import struct
import sys
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from teaching_protocol.errors import InvalidSetting, InvalidTensor, SharedMemoryLost

__all__ = [
    "ADD",
    "DROP",
    "GREETING",
    "HELLO",
    "SHARED_KEY",
    "SHARED_MIN_BYTES",
    "TAKEN",
    "Block",
    "Place",
    "Ticket",
    "can_share",
    "host_mark",
]

SHARED_KEY = "teaching-shared"
"""Metadata: in a request the `Place` of its bytes, in a reply the number of bytes that lie in the same block."""

SHARED_MIN_BYTES = 64 * 2**10
"""Smaller messages travel in the call itself."""

# What the two say to each other on the unix socket that carries the descriptors.
HELLO = struct.Struct("!16s16s")  # client, first: the id of its ticket and 16 random bytes
GREETING = struct.Struct(
    "!16sQ16s"
)  # server: the connection's secret, how many bytes it may share, proof of the ticket's key
ADD = struct.Struct("!cIQ")  # client: b"+", number of a block, its bytes; with its descriptor
DROP = struct.Struct("!cI")  # client: b"-", number of a block
TAKEN = b"\x01"  # server, after ADD; b"\x00" is a refusal

_SEALS = getattr(fcntl, "F_SEAL_SHRINK", 0) | getattr(fcntl, "F_SEAL_GROW", 0) | getattr(fcntl, "F_SEAL_SEAL", 0)


@dataclass(frozen=True)
class Ticket:
    """What admits one connection: given on the card, over the call that proved who both are; good once.

    The client shows the id alone, and the server proves that it has the key: another process that took the socket's name has not.
    """

    mark: str
    name: str
    id: bytes
    key: bytes = field(repr=False)

    def __str__(self) -> str:
        return f"{self.mark}/{self.name}/{self.id.hex()}/{self.key.hex()}"

    @classmethod
    def parse(cls, text: str) -> Ticket | None:
        """Reads what `str` of a ticket gave; None of anything else."""
        try:
            mark, name, mark_id, key = text.split("/")
            return cls(mark, name, bytes.fromhex(mark_id), bytes.fromhex(key))
        except ValueError:
            return None

    def proof(self, challenge: bytes) -> bytes:
        """What only who has the key can answer to 16 random bytes."""
        return hmac.digest(self.key, challenge, hashlib.sha256)[:16]


@dataclass(frozen=True)
class Place:
    """Where a request lies: the secret of the connection, the number of the block, and its bytes."""

    secret: str = field(repr=False)
    block: int
    size_bytes: int

    def __str__(self) -> str:
        return f"{self.secret}:{self.block}:{self.size_bytes}"

    @classmethod
    def parse(cls, text: str) -> Place:
        """Reads what `str` of a place gave.

        Raises:
            SharedMemoryLost: anything else.
        """
        try:
            secret, block, size_bytes = text.split(":")
            return cls(secret, int(block), int(size_bytes))
        except ValueError:
            raise SharedMemoryLost(f"{text[:80]!r} is no place in shared memory; send the message itself") from None


class Block:
    """Some bytes of memory that two processes share. Made by `create` or `adopt`; freed when nobody holds it."""

    def __init__(self, descriptor: int, size_bytes: int) -> None:
        path = f"/proc/self/fd/{descriptor}"
        self.size_bytes = size_bytes
        self._memory = torch.from_file(path, shared=True, size=size_bytes, dtype=torch.uint8).numpy()

    @classmethod
    def create(cls, size_bytes: int) -> tuple[Block, int]:
        """A new block, and its descriptor: for the caller to hand over and close.

        Raises:
            OSError: there is no memory for it, or no descriptor.
        """
        descriptor = os.memfd_create("teaching", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(descriptor, size_bytes)
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
            return cls(descriptor, size_bytes), descriptor
        except BaseException:
            os.close(descriptor)
            raise

    @classmethod
    def adopt(cls, descriptor: int, size_bytes: int) -> Block:
        """The block behind a received descriptor, which stays the caller's to close.

        Raises:
            InvalidSetting: no file that keeps its size and its pages whatever its maker does. Nothing is mapped then.
        """
        try:
            sealed = fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & _SEALS == _SEALS
            whole = os.fstat(descriptor).st_size == size_bytes and os.fstatvfs(descriptor).f_bsize == mmap.PAGESIZE
            if sealed and whole and size_bytes:
                return cls(descriptor, size_bytes)
        except (OSError, RuntimeError) as error:
            raise InvalidSetting(f"the descriptor cannot be shared: {error}") from error
        raise InvalidSetting(f"received a descriptor that is no sealed memfd of {size_bytes} bytes")

    def put(self, pieces: Iterable[bytes | memoryview]) -> int:
        """Copies the pieces in, one behind the other, and gives their bytes together; they must fit."""
        end = 0
        for piece in pieces:
            start, end = end, end + len(piece)
            if piece:
                np.copyto(self._memory[start:end], np.frombuffer(piece, np.uint8))  # without the interpreter's lock
        return end

    def take(self, size_bytes: int) -> memoryview:
        """A copy of the first bytes, which nobody else can write to.

        Raises:
            InvalidTensor: more than there are.
        """
        self._check(size_bytes)
        found = np.empty(size_bytes, np.uint8)
        np.copyto(found, self._memory[:size_bytes])
        return found.data

    def lend(self, size_bytes: int, when_unused: Callable[[], object]) -> memoryview:
        """The first bytes where they lie. `when_unused` is called once nothing refers to them any more, by whichever thread.

        Raises:
            InvalidTensor: more than there are.
        """
        self._check(size_bytes)
        lent = (ctypes.c_char * size_bytes).from_buffer(self._memory.data)
        weakref.finalize(lent, when_unused).atexit = False
        return memoryview(lent).cast("B")

    def _check(self, size_bytes: int) -> None:
        if not 0 <= size_bytes <= self.size_bytes:
            raise InvalidTensor(f"a message of {size_bytes} bytes in a block of {self.size_bytes}; repair the sender")


def can_share() -> bool:
    """Whether this system has what a block needs."""
    return sys.platform == "linux" and hasattr(os, "memfd_create") and hasattr(fcntl, "F_ADD_SEALS")


@functools.cache
def host_mark() -> str:
    """The same text in two processes that run on one kernel and in one network namespace, and in no others."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text()
    return hashlib.sha256(f"{boot} {Path('/proc/self/ns/net').readlink()}".encode()).hexdigest()[:16]
