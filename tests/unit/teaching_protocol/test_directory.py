"""Replicas on the wire: what is written is read; what no honest directory says is refused."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from teaching_protocol.directory import DIRECTORY, RESOLVE, Replica, is_question, read_replicas, write_replicas
from teaching_protocol.errors import InvalidTensor
from teaching_protocol.v1 import directory_pb2

text = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=30)
replicas = st.builds(
    Replica, text, text, st.sampled_from(["serving", "draining"]), st.floats(0, 1e9), st.integers(0, 2**40)
)


@given(st.lists(replicas, max_size=8))
def test_what_is_written_is_read(found: list[Replica]) -> None:
    assert read_replicas(write_replicas(found)) == tuple(found)


@settings(max_examples=500)
@given(st.binary(max_size=200))
def test_any_bytes_are_a_reply_or_a_typed_error(data: bytes) -> None:
    try:
        found = read_replicas(data)
    except InvalidTensor:
        return
    assert all(each.name and each.address and each.queue_s >= 0 for each in found)


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": ""},
        {"address": ""},
        {"address": "a" * 301},
        {"name": "a\x00b"},
        {"queue_s": float("nan")},
        {"queue_s": -1.0},
        {"sessions": -1},
    ],
)
def test_what_no_directory_says_is_refused(wrong: dict[str, object]) -> None:
    reply = directory_pb2.ResolveReply()
    reply.replicas.add(**{"name": "a", "address": "b", "state": 1} | wrong)
    with pytest.raises(InvalidTensor, match="expected 4096 at most"):
        read_replicas(reply.SerializeToString())


def test_a_state_of_later_versions_is_passed_over() -> None:
    reply = directory_pb2.ResolveReply()
    reply.replicas.add(name="a", address="b:1", state=7)
    reply.replicas.add(name="c", address="d:1", state=1)
    assert read_replicas(reply.SerializeToString()) == (Replica("c", "d:1"),)


def test_too_many_and_too_large() -> None:
    with pytest.raises(InvalidTensor, match="4097 replicas"):
        read_replicas(write_replicas([Replica("a", "b")] * 4097))
    with pytest.raises(InvalidTensor, match="bytes was received"):
        read_replicas(bytes(2**22 + 1))


def test_the_question_has_no_fields_and_bears_those_of_later_versions() -> None:
    assert is_question(b"")
    assert is_question(b"\x0a\x01a")
    assert not is_question(b"\xff")
    assert not is_question(b"\x0a\x01a" * 1000)
    assert (DIRECTORY, RESOLVE) == (
        "teaching_protocol.v1.Directory",
        "/teaching_protocol.v1.Directory/Resolve",
    )
