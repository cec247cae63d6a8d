"""Blocks of memory that students on this host share with the server: taken over, found, let go; no gRPC.

Each student hands its blocks over on a connection to a unix socket, and they live as long as that connection: the kernel
closes it when the student ends, however it ends. Whoever has an account on this host can knock there, so only a ticket from the
card is let in, and what it hands over serves the identity it was given to alone. A connection's secret is known to its student.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import selectors
import socket
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from teaching_protocol.errors import InvalidSetting, SharedMemoryLost
from teaching_protocol.shared_memory import (
    ADD,
    DROP,
    GREETING,
    HELLO,
    TAKEN,
    Block,
    Place,
    Ticket,
    can_share,
    host_mark,
)

__all__ = ["SameHost"]

_log = logging.getLogger(__name__)

_BLOCKS = 64  # of one connection
_REFUSED = b"\x00"
_TICKETS, _TICKET_S = 1024, 60.0
_STRANGERS = 64  # connections that have shown no ticket yet


@dataclass(eq=False)
class _Connection:
    """One student's end of the socket and the blocks it has handed over."""

    socket: socket.socket
    secret: bytes = field(default_factory=lambda: secrets.token_bytes(16), repr=False)
    owner: str | None = None
    blocks: dict[int, Block] = field(default_factory=dict)


class SameHost:
    """The server's side of shared memory.

    Args:
        limit_bytes: shared bytes of one connection; 0 opens no socket.
        connections: how many there may be at once; one more is turned away and sends its messages through the call.
    """

    def __init__(self, limit_bytes: int, connections: int) -> None:
        self.address = ""
        self._limit_bytes = limit_bytes
        self._most = connections
        self._found: dict[str, _Connection] = {}
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._tickets: OrderedDict[bytes, tuple[Ticket, str, float]] = OrderedDict()
        self._strangers: list[_Connection] = []

    def start(self) -> None:
        """Opens the socket and begins to listen; leaves `address` empty where the system has no such memory."""
        if not self._limit_bytes or not can_share():
            return
        name = f"talking-models-{secrets.token_hex(8)}"
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        self._listener.bind(f"\0{name}")  # a name without a file: nothing stays behind
        self._listener.listen()
        self._stop, self._stopped = socket.socketpair()
        self.address = f"{host_mark()}/{name}"
        self._thread = threading.Thread(target=self._listen, name="same-host", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Lets go of every block that no call holds at this moment."""
        if self._thread is not None:
            self._stop.close()
            self._thread.join()

    def __len__(self) -> int:
        return len(self._found)

    def ticket(self, owner: str) -> str:
        """What the card tells this caller: where the socket is, and what lets one connection of theirs in; or nothing."""
        if not self.address:
            return ""
        mark, _, name = self.address.partition("/")
        ticket = Ticket(mark, name, secrets.token_bytes(16), secrets.token_bytes(16))
        with self._lock:
            self._tickets[ticket.id] = ticket, owner, time.monotonic() + _TICKET_S
            if len(self._tickets) > _TICKETS:
                self._tickets.popitem(last=False)
        return str(ticket)

    def find(self, place: Place, owner: str = "") -> Block:
        """The block a request of this owner names.

        Raises:
            SharedMemoryLost: this owner never handed it over to this server, or the connection has ended.
        """
        connection = self._found.get(place.secret)
        is_own = connection is not None and connection.owner == owner
        block = connection.blocks.get(place.block) if connection is not None and is_own else None
        if block is None:
            raise SharedMemoryLost(
                "the request lies in memory that this server does not share; send the message itself"
            )
        return block

    def shut_out(self, is_let_in: Callable[[str], bool]) -> None:
        """Hangs up on owners that are let in no more."""
        for connection in list(self._found.values()):
            if not is_let_in(connection.owner or ""):
                with contextlib.suppress(OSError):  # it has just gone by itself
                    connection.socket.shutdown(socket.SHUT_RDWR)

    def _listen(self) -> None:
        with selectors.DefaultSelector() as selector, self._stopped, self._listener:
            selector.register(self._stopped, selectors.EVENT_READ)
            selector.register(self._listener, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select():
                    if key.fileobj is self._stopped:
                        for connection in [*self._found.values(), *self._strangers]:
                            self._end(connection)
                        return
                    if key.fileobj is self._listener:
                        self._accept(selector)
                    elif not self._serve(key.data):
                        selector.unregister(key.fileobj)
                        self._end(key.data)

    def _accept(self, selector: selectors.BaseSelector) -> None:
        try:
            connection = _Connection(self._listener.accept()[0])
        except OSError as error:  # no descriptor left: whoever knocks waits
            _log.warning("a student's shared memory was not taken: %s", str(error))
            threading.Event().wait(0.1)
            return
        connection.socket.setblocking(False)
        if len(self._strangers) >= _STRANGERS:  # the one that has kept silent longest makes room
            selector.unregister(self._strangers[0].socket)
            self._end(self._strangers[0])
        self._strangers.append(connection)
        selector.register(connection.socket, selectors.EVENT_READ, connection)

    def _greet(self, connection: _Connection, packet: bytes) -> bool:
        """Lets a stranger in for its ticket, once."""
        if len(packet) != HELLO.size or len(self._found) >= self._most:
            return False
        mark, challenge = HELLO.unpack(packet)
        with self._lock:
            ticket, owner, until = self._tickets.pop(mark, (None, "", 0.0))
        if ticket is None or time.monotonic() > until:
            return False
        self._strangers.remove(connection)
        connection.owner = owner
        self._found[connection.secret.hex()] = connection
        greeting = GREETING.pack(connection.secret, self._limit_bytes, ticket.proof(challenge))
        return connection.socket.send(greeting) == len(greeting)

    def _serve(self, connection: _Connection) -> bool:
        """Does what one packet asks; False ends the connection."""
        try:
            packet, descriptors, _, _ = socket.recv_fds(connection.socket, HELLO.size + 1, 1, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return True
        except OSError:
            return False
        try:
            if connection.owner is None:
                return not descriptors and self._greet(connection, packet)
            if len(packet) == DROP.size and packet[:1] == b"-":
                return connection.blocks.pop(DROP.unpack(packet)[1], None) is not None
            if len(packet) == ADD.size and packet[:1] == b"+" and descriptors:
                _, number, size_bytes = ADD.unpack(packet)
                taken = self._take_over(connection, number, size_bytes, descriptors[0])
                return connection.socket.send(TAKEN if taken else _REFUSED) == 1
            return False
        except OSError:  # it does not read what it is told
            return False
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def _take_over(self, connection: _Connection, number: int, size_bytes: int, descriptor: int) -> bool:
        shared = sum(block.size_bytes for block in connection.blocks.values())
        if number in connection.blocks or len(connection.blocks) >= _BLOCKS or shared + size_bytes > self._limit_bytes:
            return False
        try:
            connection.blocks[number] = Block.adopt(descriptor, size_bytes)
        except InvalidSetting as error:
            _log.debug("a student's shared memory was not taken: %s", str(error))
            return False
        return True

    def _end(self, connection: _Connection) -> None:
        self._found.pop(connection.secret.hex(), None)
        if connection in self._strangers:
            self._strangers.remove(connection)
        connection.blocks.clear()
        connection.socket.close()
