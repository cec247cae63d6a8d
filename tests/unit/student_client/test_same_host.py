"""The client's pool of shared blocks against a real server's end."""

from __future__ import annotations

import gc
import os
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from student_client.connection.same_host import SharedBlocks
from teaching_protocol.errors import DeadlineExceeded, InvalidTensor, Overloaded, SharedMemoryLost
from teaching_protocol.shared_memory import GREETING, HELLO, SHARED_MIN_BYTES, Ticket, can_share, host_mark
from tests.integration.gate import poll

pytestmark = pytest.mark.skipif(not can_share(), reason="there is no memfd here")

MIB = 2**20
Serve = Callable[[Callable[[socket.socket], None]], str]


def received(peer: socket.socket) -> bytes:
    packet, descriptors, _, _ = socket.recv_fds(peer, 100, 1)
    for descriptor in descriptors:
        os.close(descriptor)
    return packet


def ticket(name: str) -> Ticket:
    return Ticket(host_mark(), name, b"i" * 16, b"k" * 16)


def greet(peer: socket.socket, key: bytes = b"k" * 16) -> None:
    """What a server says to the ticket above."""
    mark, challenge = HELLO.unpack(peer.recv(100))
    assert mark == b"i" * 16
    peer.send(GREETING.pack(b"s" * 16, 8 * MIB, Ticket("", "", mark, key).proof(challenge)))


def taking(peer: socket.socket) -> None:
    """A server's end that takes every block of a student that may share 8 MiB."""
    greet(peer)
    while packet := received(peer):
        if packet[:1] == b"+":
            peer.send(b"\x01")


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Runs a server's end for one connection after another; gives what its card would say."""
    listeners: list[socket.socket] = []

    def start(behave: Callable[[socket.socket], None]) -> str:
        name = f"talking-models-test-{id(listeners)}-{len(listeners)}"
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        listener.bind(f"\0{name}")
        listener.listen()
        listeners.append(listener)

        def loop() -> None:
            while True:
                try:
                    peer = listener.accept()[0]
                except OSError:
                    return
                with peer:
                    behave(peer)

        threading.Thread(target=loop, daemon=True).start()
        return str(ticket(name))

    yield start
    for listener in listeners:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


@pytest.fixture
def blocks(serve: Serve) -> Iterator[SharedBlocks]:
    found = SharedBlocks()
    assert found.connect(serve(taking))
    yield found
    found.close()


def number(blocks: SharedBlocks, size_bytes: int = MIB) -> int | None:
    """A call without a reply: the number of its block."""
    with blocks.leased(size_bytes) as lease:
        if lease is not None:
            lease.end()
        return lease.number if lease is not None else None


def test_a_block_is_used_again_and_small_messages_get_none(blocks: SharedBlocks) -> None:
    assert number(blocks, SHARED_MIN_BYTES - 1) is None
    assert [number(blocks), number(blocks, SHARED_MIN_BYTES), number(blocks)] == [0, 0, 0]
    assert number(blocks, MIB + 1) == 1
    assert [number(blocks), number(blocks, MIB + 1)] == [0, 1]


def test_two_calls_never_have_the_same_block(blocks: SharedBlocks) -> None:
    used: set[int] = set()

    def call(_: int) -> None:
        with blocks.leased(MIB) as lease:
            if lease is not None:
                assert lease.number not in used
                used.add(lease.number)
                lease.put([b"x" * MIB])
                used.remove(lease.number)
                lease.end()

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(call, range(400)))


@pytest.mark.parametrize(
    ("error", "again"), [(Overloaded, True), (DeadlineExceeded, False), (KeyboardInterrupt, False)]
)
def test_the_block_of_a_call_that_failed(error: type[BaseException], again: bool, blocks: SharedBlocks) -> None:
    with pytest.raises(error), blocks.leased(MIB):
        raise error("no")
    assert (number(blocks) == 0) is again


def test_a_block_is_lent_until_the_last_tensor_of_its_reply_is_gone(blocks: SharedBlocks) -> None:
    with blocks.leased(MIB) as lease:
        assert lease is not None
        lease.put([bytes(range(8)) * 1000])
        reply = lease.reply(8000)
    tensor = torch.frombuffer(reply[8:16], dtype=torch.uint8).reshape(2, 4)
    row = tensor[1]
    del reply, tensor, lease
    gc.collect()
    assert number(blocks) == 1  # the first is in use
    blocks.close()
    assert row.tolist() == [4, 5, 6, 7]  # even when everything else is gone
    del row
    assert "memfd:teaching" not in Path("/proc/self/maps").read_text()


def test_a_block_comes_back_when_its_reply_dies(blocks: SharedBlocks) -> None:
    for _ in range(3):
        with blocks.leased(MIB) as lease:
            assert lease is not None
            assert lease.number == 0
            reply = lease.reply(8000)
        del lease, reply
    with pytest.raises(InvalidTensor), blocks.leased(MIB) as lease:
        lease.reply(MIB + 1)  # type: ignore[union-attr]
    assert number(blocks) == 1


def test_a_server_that_lost_the_memory_is_left(blocks: SharedBlocks) -> None:
    with pytest.raises(SharedMemoryLost), blocks.leased(MIB):
        raise SharedMemoryLost("gone")
    assert number(blocks) is None


def test_free_blocks_make_room_and_held_ones_do_not(blocks: SharedBlocks) -> None:
    assert [number(blocks, size * MIB) for size in (1, 2, 4)] == [0, 1, 2]
    assert number(blocks, 8 * MIB) == 3
    with blocks.leased(8 * MIB) as held:
        assert held is not None
        assert number(blocks, MIB) is None
    assert number(blocks, 9 * MIB) is None
    assert Path("/proc/self/maps").read_text().count("memfd:teaching") <= 1


def test_a_server_that_hangs_up(serve: Serve) -> None:
    blocks = SharedBlocks()
    peers: list[socket.socket] = []

    def hang_up(peer: socket.socket) -> None:
        peers.append(peer)
        taking(peer)

    assert blocks.connect(serve(hang_up))
    assert number(blocks) == 0
    peers[0].shutdown(socket.SHUT_RDWR)
    poll(lambda: number(blocks) is None, "it is noticed")
    assert "memfd:teaching" not in Path("/proc/self/maps").read_text()


def refusing(peer: socket.socket) -> None:
    greet(peer)
    while received(peer):
        peer.send(b"\x00")


def test_a_server_that_takes_no_block(serve: Serve) -> None:
    blocks = SharedBlocks()
    assert blocks.connect(serve(refusing))
    assert number(blocks) is None
    assert "memfd:teaching" not in Path("/proc/self/maps").read_text()
    blocks.close()


def test_who_took_the_servers_name_is_given_no_message(serve: Serve) -> None:
    """Another user may bind the name of a server that has gone; it cannot prove that it gave the ticket out."""
    blocks = SharedBlocks()
    assert not blocks.connect(serve(lambda peer: greet(peer, b"?" * 16)))
    assert number(blocks) is None
    blocks.close()


def test_who_is_not_on_this_host_goes_without(serve: Serve) -> None:
    here = serve(taking)
    blocks = SharedBlocks()
    there = "0123456789abcdef/" + here.partition("/")[2]
    for same_host in ("", "/", here.partition("/")[0], str(ticket("talking-models-nobody")), there, here + "x"):
        assert not blocks.connect(same_host)
        assert number(blocks) is None
    assert not blocks.connect(serve(lambda peer: None))  # it hangs up at once
    assert not blocks.connect(serve(lambda peer: peer.send(b"hello") and None))
    assert blocks.connect(here)
    blocks.close()
    assert number(blocks) is None
