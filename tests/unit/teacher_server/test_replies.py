from __future__ import annotations

import dataclasses

import pytest
import torch

from teacher_server.sessions.replies import Replies, fingerprint
from teaching_protocol.errors import CallConflict
from teaching_protocol.verbs import ForwardRequest, SessionRef

REQUEST = ForwardRequest(SessionRef("s", 1), "a", ("answer",), True, ("message",), {"message": torch.arange(4.0)})


def test_a_repeated_call_gets_its_reply_and_another_body_a_conflict() -> None:
    replies, reply = Replies(1000), object()
    assert replies.find("a", 1) is None
    replies.keep("a", 1, reply, 10)
    assert replies.find("a", 1) is reply
    with pytest.raises(CallConflict, match="call id 'a' was used before with another body; give each call an id"):
        replies.find("a", 2)


def test_the_oldest_go_beyond_the_budget_and_the_newest_stays() -> None:
    replies = Replies(100)
    for name, size in (("a", 60), ("b", 30), ("c", 50)):
        replies.keep(name, 0, name, size)
    assert (replies.find("a", 0), replies.find("b", 0), replies.size_bytes) == (None, "b", 80)
    replies.keep("d", 0, "d", 10_000)
    assert (replies.find("c", 0), replies.find("d", 0), replies.size_bytes) == (None, "d", 10_000)
    replies.keep("e", 0, "e", 1)
    assert (replies.find("d", 0), replies.size_bytes) == (None, 1)


def test_their_number_is_bounded() -> None:
    replies = Replies(1000)
    for number in range(1000):
        replies.keep(str(number), 0, number, 0)
    assert replies.find("743", 0) is None
    assert replies.find("744", 0) == 744


@pytest.mark.parametrize(
    "change",
    [
        {"outputs": ("answer", "logits")}, {"backward_follows": False}, {"grad_inputs": ()}, {"compression": "bf16"},
        {"inputs": {"message": torch.arange(4.0).reshape(2, 2)}}, {"inputs": {"message": torch.arange(4)}},
        {"inputs": {"message": torch.tensor([0.0, 1.0, 2.0, 3.000001])}}, {"inputs": {"other": torch.arange(4.0)}},
    ],
    ids=str,
)  # fmt: skip
def test_the_fingerprint_tells_every_field(change: dict[str, object]) -> None:
    assert fingerprint(dataclasses.replace(REQUEST, **change)) != fingerprint(REQUEST)  # type: ignore[arg-type]


def test_the_fingerprint_is_blind_to_epoch_and_memory_layout() -> None:
    strided = torch.arange(8.0)[::2] / 2
    again = dataclasses.replace(REQUEST, session=SessionRef("s", 2), inputs={"message": strided})
    assert fingerprint(again) == fingerprint(REQUEST)


def test_a_reply_kept_again_counts_once() -> None:
    replies = Replies(1000)
    for _ in range(3):
        replies.keep("step-1", 0, "reply", 40)
    assert replies.size_bytes == 40
