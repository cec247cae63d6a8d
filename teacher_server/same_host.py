"""Blocks of memory that students on this host share with the server: taken over, found, let go; no gRPC.

Each student hands its blocks over on a connection to a unix socket, and they live as long as that connection: the kernel
closes it when the student ends, however it ends. A connection's secret is known to its student alone.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import selectors
import socket
import threading
from dataclasses import dataclass, field

from teaching_protocol.errors import InvalidSetting, SharedMemoryLost
from teaching_protocol.shared_memory import ADD, DROP, GREETING, TAKEN, Block, Place, can_share, host_mark

__all__ = ["SameHost"]

_log = logging.getLogger(__name__)

_BLOCKS = 64  # of one connection
_REFUSED = b"\x00"


@dataclass(eq=False)
class _Connection:
    """One student's end of the socket and the blocks it has handed over."""

    socket: socket.socket
    secret: bytes = field(default_factory=lambda: secrets.token_bytes(16))
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

    def find(self, place: Place) -> Block:
        """The block a request names.

        Raises:
            SharedMemoryLost: it was never handed over to this server, or its connection has ended.
        """
        connection = self._found.get(place.secret)
        block = connection.blocks.get(place.block) if connection is not None else None
        if block is None:
            raise SharedMemoryLost(
                "the request lies in memory that this server does not share; send the message itself"
            )
        return block

    def _listen(self) -> None:
        with selectors.DefaultSelector() as selector, self._stopped, self._listener:
            selector.register(self._stopped, selectors.EVENT_READ)
            selector.register(self._listener, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select():
                    if key.fileobj is self._stopped:
                        for connection in list(self._found.values()):
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
        if len(self._found) >= self._most:
            connection.socket.close()
            return
        self._found[connection.secret.hex()] = connection
        selector.register(connection.socket, selectors.EVENT_READ, connection)
        with contextlib.suppress(OSError):  # it is gone already: the selector will say so
            connection.socket.send(GREETING.pack(connection.secret, self._limit_bytes))

    def _serve(self, connection: _Connection) -> bool:
        """Does what one packet asks; False ends the connection."""
        try:
            packet, descriptors, _, _ = socket.recv_fds(connection.socket, ADD.size + 1, 1, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return True
        except OSError:
            return False
        try:
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
        connection.blocks.clear()
        connection.socket.close()
