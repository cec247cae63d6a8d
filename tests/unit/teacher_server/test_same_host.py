"""The server's end of shared memory against good and hostile clients, over the real socket."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from teacher_server.serving.same_host import SameHost
from teaching_protocol.errors import SharedMemoryLost
from teaching_protocol.shared_memory import ADD, DROP, GREETING, HELLO, TAKEN, Block, Place, Ticket, can_share
from tests.integration.gate import poll

pytestmark = pytest.mark.skipif(not can_share(), reason="there is no memfd here")

LIMIT = 2**20
SIZE = 2**16


@contextmanager
def serving(connections: int = 4) -> Iterator[SameHost]:
    host = SameHost(LIMIT, connections)
    host.start()
    try:
        yield host
    finally:
        host.close()
    assert len(host) == 0
    assert mapped() == 0


def mapped() -> int:
    return Path("/proc/self/maps").read_text().count("memfd:teaching")


def dial(host: SameHost) -> socket.socket:
    found = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    found.settimeout(10)
    found.connect("\0" + host.address.partition("/")[2])
    return found


def greeted(host: SameHost, owner: str = "") -> tuple[socket.socket, str]:
    found = dial(host)
    ticket = Ticket.parse(host.ticket(owner))
    assert ticket is not None
    found.send(HELLO.pack(ticket.id, b"c" * 16))
    secret, limit, proof = GREETING.unpack(found.recv(100))
    assert limit == LIMIT
    assert proof == ticket.proof(b"c" * 16)
    return found, secret.hex()


@pytest.mark.parametrize("packet", [b"", b"x", HELLO.pack(b"i" * 16, b"c" * 16), ADD.pack(b"+", 0, SIZE)], ids=repr)
def test_who_has_no_ticket_is_told_nothing(packet: bytes) -> None:
    """Another user of this host reaches the socket, and gets nothing from it: no secret, and no block is taken."""
    with serving() as host:
        stranger = dial(host)
        if packet:
            stranger.send(packet)
            assert stranger.recv(100) == b""
        else:
            stranger.settimeout(0.1)
            with pytest.raises(TimeoutError):
                stranger.recv(100)
        assert len(host) == 0
        stranger.close()


def test_a_ticket_is_good_once() -> None:
    with serving() as host:
        ticket = Ticket.parse(host.ticket("ann"))
        assert ticket is not None
        first, second = dial(host), dial(host)
        for client, size in ((first, GREETING.size), (second, 0)):
            client.send(HELLO.pack(ticket.id, b"c" * 16))
            assert len(client.recv(100)) == size
        first.close()
        second.close()


def test_strangers_who_keep_silent_shut_nobody_out() -> None:
    with serving() as host:
        strangers = [dial(host) for _ in range(100)]
        good, secret = greeted(host)
        assert hand_over(good, 0)[0] == TAKEN
        assert host.find(Place(secret, 0, 1))
        for each in (good, *strangers):
            each.close()


def test_owners_that_are_let_in_no_more_are_hung_up_on() -> None:
    with serving() as host:
        ann, bob = (greeted(host, name)[0] for name in ("ann", "bob"))
        assert hand_over(ann, 0)[0] == TAKEN
        host.shut_out(lambda owner: owner != "ann")
        assert ann.recv(10) == b""
        poll(lambda: mapped() == 0, "her blocks are unmapped")
        assert hand_over(bob, 0)[0] == TAKEN
        ann.close()
        bob.close()


def test_a_block_serves_its_owner_alone() -> None:
    """Even who has learned the secret, which none but its owner is told, gets nowhere with another identity."""
    with serving() as host:
        client, secret = greeted(host, "ann")
        assert hand_over(client, 0)[0] == TAKEN
        assert host.find(Place(secret, 0, 1), "ann")
        for other in ("bob", ""):
            with pytest.raises(SharedMemoryLost):
                host.find(Place(secret, 0, 1), other)
        client.close()


def hand_over(client: socket.socket, number: int, size: int = SIZE) -> tuple[bytes, Block]:
    block, descriptor = Block.create(size)
    socket.send_fds(client, [ADD.pack(b"+", number, size)], [descriptor])
    os.close(descriptor)
    return client.recv(10), block


def test_a_block_is_found_under_its_connections_secret_alone() -> None:
    with serving() as host:
        one, secret = greeted(host)
        other, other_secret = greeted(host)
        answer, block = hand_over(one, 7)
        assert answer == TAKEN
        block.put([b"hello"])
        assert bytes(host.find(Place(secret, 7, 5)).take(5)) == b"hello"
        for place in (Place(other_secret, 7, 5), Place(secret, 8, 5), Place("0" * 32, 7, 5), Place("", 7, 5)):
            with pytest.raises(SharedMemoryLost, match="send the message itself"):
                host.find(place)
        one.close()
        other.close()
        del block


def test_a_block_that_was_dropped_is_gone() -> None:
    with serving() as host:
        client, secret = greeted(host)
        for number in range(100):  # more than there may be at once
            assert hand_over(client, number)[0] == TAKEN
            client.send(DROP.pack(b"-", number))
        poll(lambda: mapped() == 0, "the last is unmapped")
        with pytest.raises(SharedMemoryLost):
            host.find(Place(secret, 99, 5))
        client.close()


def test_a_connection_that_ends_takes_its_blocks_along() -> None:
    with serving() as host:
        client, secret = greeted(host)
        hand_over(client, 0)
        held = host.find(Place(secret, 0, 5))
        client.close()
        poll(lambda: len(host) == 0, "the connection ends")
        assert len(held.take(5)) == 5  # a call that is under way ends with what it has
        del held


def test_what_is_refused_and_what_that_costs() -> None:
    with serving() as host:
        client, _ = greeted(host)
        kept = [hand_over(client, number, LIMIT // 4) for number in range(4)]
        assert [answer for answer, _ in kept] == [TAKEN] * 4
        assert hand_over(client, 4)[0] == b"\0"  # over the limit
        client.send(DROP.pack(b"-", 3))
        assert hand_over(client, 0)[0] == b"\0"  # a number that is taken
        reading, writing = os.pipe()
        socket.send_fds(client, [ADD.pack(b"+", 9, SIZE)], [reading])
        assert client.recv(10) == b"\0"  # no memory at all
        os.close(reading)
        os.close(writing)
        assert hand_over(client, 5)[0] == TAKEN
        client.close()
        del kept


@pytest.mark.parametrize(
    "packet", [b"?", b"+", b"x" * 200, ADD.pack(b"+", 0, SIZE), DROP.pack(b"-", 3), ADD.pack(b"-", 0, 1)], ids=repr
)
def test_who_talks_nonsense_is_hung_up_on(packet: bytes) -> None:
    with serving() as host:
        good, secret = greeted(host)
        assert hand_over(good, 0)[0] == TAKEN
        bad, _ = greeted(host)
        bad.send(packet)
        assert bad.recv(10) == b""
        assert host.find(Place(secret, 0, 1))
        good.close()
        bad.close()


def test_descriptors_do_not_pile_up() -> None:
    with serving() as host:
        client, _ = greeted(host)
        reading, writing = os.pipe()
        before = len(list(Path("/proc/self/fd").iterdir()))
        for _ in range(5):
            socket.send_fds(client, [ADD.pack(b"+", 0, SIZE)], [reading, reading, reading])
            assert client.recv(10) == b"\0"
        poll(lambda: len(list(Path("/proc/self/fd").iterdir())) == before, "all are closed")
        for descriptor in (reading, writing):
            os.close(descriptor)
        client.close()


def test_one_too_many_is_turned_away_and_the_next_is_not() -> None:
    with serving(connections=1) as host:
        first, _ = greeted(host)
        second = dial(host)
        ticket = Ticket.parse(host.ticket(""))
        assert ticket is not None
        second.send(HELLO.pack(ticket.id, b"c" * 16))
        assert second.recv(10) == b""
        first.close()
        poll(lambda: len(host) == 0, "there is room again")
        third, _ = greeted(host)
        assert hand_over(third, 0)[0] == TAKEN
        second.close()
        third.close()


def test_no_limit_no_socket() -> None:
    host = SameHost(0, 4)
    host.start()
    assert host.address == ""
    host.close()
