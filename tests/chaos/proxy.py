"""A TCP proxy of our own that delays, cuts, holds and resets what passes; knows no gRPC."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Coroutine
from typing import Any

__all__ = ["Proxy"]

_CHUNK = 65536
_PIECES = 256  # on the way at once, in one direction


class Proxy:
    """Passes connections at `port` on to `target`, in a thread of its own. Use as a context manager.

    Args:
        target: port on loopback.
        host: address that it listens at.

    Attributes:
        delay_s: how long every piece waits, both ways.
        cut_after: bytes after which a connection is cut in the midst of what it carries; 0 never.
        is_open: False: nothing passes, and nobody is told: pieces are held, as by a link that is down.
        connections: how many were made; resets: how many were ended by `reset`.
    """

    def __init__(self, target: int, host: str = "127.0.0.1") -> None:
        self.target, self.host, self.port = target, host, 0
        self.delay_s, self.cut_after, self.is_open = 0.0, 0, True
        self.connections = self.resets = self.cuts = 0
        self._loop = asyncio.new_event_loop()
        self._live: set[tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"

    def reset(self) -> None:
        """Ends every connection at once with RST, both ways."""
        self._call(self._reset())

    def __enter__(self) -> Proxy:
        self._thread.start()
        self._call(self._start())
        return self

    def __exit__(self, *_: object) -> None:
        self._call(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def _call(self, job: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(job, self._loop).result(10)

    async def _start(self) -> None:
        self._server = await asyncio.start_server(self._connected, self.host, 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _stop(self) -> None:
        self._server.close()
        await self._reset()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _reset(self) -> None:
        for pair in list(self._live):
            self.resets += 1
            _abort(pair)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.transport.abort()
            return
        pair = (writer, far_writer)
        self._live.add(pair)
        passed = [0]
        try:
            async with asyncio.TaskGroup() as ways:  # the end of one is the end of all
                for source, sink in ((reader, far_writer), (far_reader, writer)):
                    line: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_PIECES)
                    ways.create_task(self._take_in(source, line))
                    ways.create_task(self._let_out(line, sink, passed))
        except* (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self._live.discard(pair)
            _abort(pair)

    async def _take_in(self, reader: asyncio.StreamReader, line: asyncio.Queue[tuple[float, bytes]]) -> None:
        """Puts pieces on the line with the time at which they come out: one does not wait for another's delay."""
        while data := await reader.read(_CHUNK):
            await line.put((self._loop.time() + self.delay_s, data))
        await line.put((0.0, b""))

    async def _let_out(
        self, line: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter, passed: list[int]
    ) -> None:
        while True:
            due, data = await line.get()
            if not data:
                raise ConnectionResetError("one end hung up")
            await asyncio.sleep(max(0.0, due - self._loop.time()))
            while not self.is_open:
                await asyncio.sleep(0.01)
            passed[0] += len(data)
            if self.cut_after and passed[0] > self.cut_after:
                self.cuts += 1
                writer.write(data[: len(data) // 2])
                await writer.drain()
                raise ConnectionResetError("cut by the proxy")
            writer.write(data)
            await writer.drain()


def _abort(pair: tuple[asyncio.StreamWriter, asyncio.StreamWriter]) -> None:
    for writer in pair:
        connection = writer.get_extra_info("socket")
        if connection is not None and connection.fileno() >= 0:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
