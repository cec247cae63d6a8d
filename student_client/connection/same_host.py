"""Memory shared with a teacher on this host: a pool of blocks, one for each call under way; no gRPC.

The path is chosen by itself: the teacher's card says where it can be reached on its host, and a client that is not there,
or is refused, goes without.
"""

from __future__ import annotations

import contextlib
import hmac
import os
import secrets
import socket
import threading
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from queue import Empty, SimpleQueue

from teaching_protocol.errors import Overloaded, SharedMemoryLost
from teaching_protocol.shared_memory import (
    ADD,
    DROP,
    GREETING,
    HELLO,
    SHARED_MIN_BYTES,
    TAKEN,
    Block,
    Place,
    Ticket,
    can_share,
    host_mark,
)

__all__ = ["Lease", "SharedBlocks"]

_ANSWER_S = 2.0
_BLOCK_BYTES = 2**20  # of the smallest block


@dataclass(frozen=True)
class Lease:
    """A block for the time of one call, and of what its reply holds."""

    number: int
    block: Block
    secret: str
    returned: SimpleQueue[int]

    def put(self, pieces: Iterable[bytes | memoryview]) -> Place:
        """Writes the request into the block; gives what names it to the server."""
        return Place(self.secret, self.number, self.block.put(pieces))

    def reply(self, size_bytes: int) -> memoryview:
        """The reply where it lies; the block is used again when no tensor of the reply is left."""
        return self.block.lend(size_bytes, partial(self.returned.put, self.number))

    def end(self) -> None:
        """Says that nothing of the reply lies in the block, which is used again at once."""
        self.returned.put(self.number)


class SharedBlocks:
    """The blocks shared with one server; none until `connect` has reached it, and none when it is gone.

    Blocks that were used are used again, so that their pages fault only once. Any thread may call anything.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._connection: socket.socket | None = None
        self._name = self._secret = ""
        self._limit_bytes = self._bytes = self._next = 0
        self._free: list[Lease] = []
        self._lent: dict[int, Lease] = {}
        self._returned: SimpleQueue[int] = SimpleQueue()

    def connect(self, same_host: str) -> bool:
        """Reaches the server whose card says `same_host`; False where that is on another host, or nowhere."""
        ticket = Ticket.parse(same_host)
        with self._lock:
            is_known = ticket is not None and ticket.name == self._name
            if self._connection is not None and is_known and self._is_alive(self._connection):
                return True
            self._end()
            if ticket is not None and ticket.name and can_share() and ticket.mark == host_mark():
                self._name = ticket.name
                self._greet(ticket)
            return self._connection is not None

    @contextlib.contextmanager
    def leased(self, size_bytes: int) -> Iterator[Lease | None]:
        """A block of at least so many bytes for the call in the `with`; None where the call should go without.

        A call that was answered takes its `reply` out of the lease, or says `end`. One that failed may still be at work on the
        server and write its reply: nobody uses its block again.
        """
        lease = self._lease(size_bytes) if size_bytes >= SHARED_MIN_BYTES else None
        if lease is None:
            yield None
            return
        try:
            yield lease
        except SharedMemoryLost:
            self.close()
            raise
        except Overloaded:  # refused at the door: nothing was begun
            lease.end()
            raise
        except BaseException:
            self._drop(lease)
            raise

    def close(self) -> None:
        """Ends the connection, and with it every block; calls under way end by themselves."""
        with self._lock:
            self._end()

    def _lease(self, size_bytes: int) -> Lease | None:
        with self._lock:
            if self._connection is None:
                return None
            if not self._is_alive(self._connection):
                self._end()
                return None
            self._take_back()
            fitting = [lease for lease in self._free if lease.block.size_bytes >= size_bytes]
            found: Lease | None
            if fitting:
                found = min(fitting, key=lambda lease: lease.block.size_bytes)
                self._free.remove(found)
            else:
                found = self._added(self._connection, max(_BLOCK_BYTES, 1 << (size_bytes - 1).bit_length()))
            if found is not None:
                self._lent[found.number] = found
            return found

    def _take_back(self) -> None:
        """What came back since the last time; by a queue, since a tensor may die at any moment, even in the midst of this."""
        with contextlib.suppress(Empty):
            while True:
                lease = self._lent.pop(self._returned.get_nowait(), None)
                self._free += [lease] if lease is not None else []

    def _drop(self, lease: Lease) -> None:
        with self._lock:
            if self._connection is not None and self._lent.get(lease.number) is lease:
                del self._lent[lease.number]
                self._forget(self._connection, lease)

    def _greet(self, ticket: Ticket) -> None:
        """Shows the ticket, and believes no one who cannot prove to have given it out."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        connection.settimeout(_ANSWER_S)
        try:
            connection.connect(f"\0{ticket.name}")
            challenge = secrets.token_bytes(16)
            connection.send(HELLO.pack(ticket.id, challenge))
            greeting = connection.recv(GREETING.size + 1)
        except OSError:
            greeting = b""
        if len(greeting) != GREETING.size:  # nobody there, or no room: it hung up
            connection.close()
            return
        secret, limit_bytes, proof = GREETING.unpack(greeting)
        if not hmac.compare_digest(proof, ticket.proof(challenge)):  # somebody else took the name
            connection.close()
            return
        self._limit_bytes = limit_bytes
        self._connection, self._secret = connection, secret.hex()
        self._unclosed = weakref.finalize(self, connection.close)  # of a client that nobody closed

    def _is_alive(self, connection: socket.socket) -> bool:
        connection.settimeout(0.0)
        try:
            connection.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            connection.settimeout(_ANSWER_S)
            return True
        except OSError:
            pass
        return False  # it hung up, or said something that nobody asked

    def _added(self, connection: socket.socket, size_bytes: int) -> Lease | None:
        for lease in sorted(self._free, key=lambda each: each.block.size_bytes):
            if self._bytes + size_bytes > self._limit_bytes:
                self._free.remove(lease)
                self._forget(connection, lease)
        if self._bytes + size_bytes > self._limit_bytes:
            return None
        try:
            block, descriptor = Block.create(size_bytes)
        except (OSError, RuntimeError):
            return None
        number, self._next = self._next, self._next + 1
        try:
            socket.send_fds(connection, [ADD.pack(b"+", number, size_bytes)], [descriptor])
            taken = connection.recv(1) == TAKEN
        except OSError:
            self._end()
            return None
        finally:
            os.close(descriptor)
        if not taken:
            return None
        self._bytes += size_bytes
        return Lease(number, block, self._secret, self._returned)

    def _forget(self, connection: socket.socket, lease: Lease) -> None:
        self._bytes -= lease.block.size_bytes
        with contextlib.suppress(OSError):  # it hung up: the next lease will see
            connection.send(DROP.pack(b"-", lease.number))

    def _end(self) -> None:
        if self._connection is not None:
            self._unclosed()
        self._connection, self._secret, self._bytes = None, "", 0
        self._free.clear()
        self._lent.clear()
        self._returned = SimpleQueue()  # what is still lent comes back to the old one, and is gone with it
