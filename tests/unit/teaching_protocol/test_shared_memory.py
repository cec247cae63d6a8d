"""Blocks of shared memory: what goes in comes out, nothing can be pulled away, nothing stays behind."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from teaching_protocol.errors import InvalidSetting, InvalidTensor, SharedMemoryLost
from teaching_protocol.shared_memory import Block, Place, can_share, host_mark
from tests.calls import attempt

pytestmark = pytest.mark.skipif(not can_share(), reason="there is no memfd here")

SEALS = getattr(fcntl, "F_SEAL_SHRINK", 0) | getattr(fcntl, "F_SEAL_GROW", 0) | getattr(fcntl, "F_SEAL_SEAL", 0)
SIZE = 2**16


def mapped() -> int:
    return Path("/proc/self/maps").read_text().count("memfd:teaching")


@pytest.fixture
def handed_over() -> Iterator[tuple[Block, int]]:
    block, descriptor = Block.create(SIZE)
    yield block, descriptor
    os.close(descriptor)


@given(st.lists(st.binary(max_size=200), max_size=6))
@settings(max_examples=50, deadline=None)
def test_what_one_puts_the_other_takes(pieces: list[bytes]) -> None:
    mine, descriptor = Block.create(SIZE)
    theirs = Block.adopt(descriptor, SIZE)
    os.close(descriptor)
    size = mine.put([memoryview(piece) for piece in pieces])
    assert bytes(theirs.take(size)) == b"".join(pieces)


def test_what_was_taken_cannot_be_changed_by_the_other(handed_over: tuple[Block, int]) -> None:
    mine, descriptor = handed_over
    theirs = Block.adopt(descriptor, SIZE)
    mine.put([b"before"])
    taken = theirs.take(6)
    mine.put([b"after!"])
    assert bytes(taken) == b"before"


def test_a_block_keeps_its_size(handed_over: tuple[Block, int]) -> None:
    _, descriptor = handed_over
    for size in (0, SIZE - 1, SIZE + 1):
        with pytest.raises(PermissionError):
            os.ftruncate(descriptor, size)
    with pytest.raises(PermissionError):
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)


def unsealed(folder: Path) -> int:
    return memfd(0)


def half_sealed(folder: Path) -> int:
    return memfd(fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)


def never_written(folder: Path) -> int:
    return memfd(SEALS | fcntl.F_SEAL_WRITE)


def huge_pages(folder: Path) -> int:
    return memfd(SEALS, os.MFD_HUGETLB, 2**21)


def file_on_disk(folder: Path) -> int:
    path = folder / "file"
    path.write_bytes(b"\0" * SIZE)
    return os.open(path, os.O_RDWR)


def pipe(folder: Path) -> int:
    reading, writing = os.pipe()
    os.close(writing)
    return reading


def too_short(folder: Path) -> int:
    return memfd(SEALS, size=SIZE - 1)


def too_long(folder: Path) -> int:
    return memfd(SEALS, size=SIZE + 1)


def memfd(seals: int, flags: int = 0, size: int = SIZE) -> int:
    descriptor = os.memfd_create("teaching", os.MFD_ALLOW_SEALING | flags)
    os.ftruncate(descriptor, size)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    return descriptor


BAD = [unsealed, half_sealed, never_written, huge_pages, file_on_disk, pipe, too_short, too_long]


@pytest.mark.parametrize("make", BAD, ids=lambda make: make.__name__)
def test_descriptors_that_are_no_block(make, tmp_path: Path) -> None:
    descriptor = make(tmp_path)
    size = os.fstat(descriptor).st_size if make is huge_pages else SIZE
    before = mapped()
    with pytest.raises(InvalidSetting, match="descriptor"):
        Block.adopt(descriptor, size)
    os.close(descriptor)
    assert mapped() == before


def test_nothing_of_no_bytes() -> None:
    descriptor = memfd(SEALS, size=0)
    with pytest.raises(InvalidSetting):
        Block.adopt(descriptor, 0)
    os.close(descriptor)


def test_more_than_there_is(handed_over: tuple[Block, int]) -> None:
    for size in (-1, SIZE + 1, 2**60):
        with pytest.raises(InvalidTensor, match=f"a message of {size} bytes in a block of {SIZE}"):
            handed_over[0].take(size)


def test_memory_ends_with_the_last_who_holds_it() -> None:
    before = mapped()
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    block, descriptor = Block.create(SIZE)
    other = Block.adopt(descriptor, SIZE)
    os.close(descriptor)
    taken = other.take(SIZE)
    assert mapped() == before + 2
    assert len(list(Path("/proc/self/fd").iterdir())) == descriptors
    del block, other
    assert mapped() == before
    assert len(taken) == SIZE


@given(st.builds(Place, st.from_regex(r"[0-9a-f]{32}", fullmatch=True), st.integers(), st.integers()))
@settings(max_examples=50)
def test_a_place_returns_as_it_was(place: Place) -> None:
    assert Place.parse(str(place)) == place


@given(st.text(max_size=30))
@settings(max_examples=200)
def test_any_text_is_a_place_or_a_typed_error(text: str) -> None:
    assert isinstance(attempt(lambda: Place.parse(text)), Place | SharedMemoryLost)


def test_the_mark_is_this_hosts() -> None:
    assert host_mark() == host_mark()
    assert len(host_mark()) == 16
