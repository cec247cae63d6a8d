"""Which rows' messages are heard: shares, silence, and what a checkpoint carries on."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from student_client.method_config import MethodConfig
from student_client.methods.gate import MessageGate

ROWS = torch.zeros(4000, 3)


def gate(seed: int = 0, **fields: Any) -> MessageGate:
    return MessageGate(MethodConfig.model_validate(fields), seed)


def heard(found: torch.Tensor | None) -> torch.Tensor:
    assert found is not None
    return found


def test_a_share_of_the_rows_is_dropped_and_the_rest_is_scaled() -> None:
    found = heard(gate(message_dropout=0.25, question_scale=0.3)(ROWS))
    assert found.shape == (4000,)
    assert {round(value, 6) for value in found.tolist()} == {0.0, 0.3}
    assert (found == 0).double().mean().item() == pytest.approx(0.25, abs=0.03)


def test_nothing_is_sent_where_every_message_is_heard_as_it_is() -> None:
    assert gate(message_dropout=0.0, question_scale=1.0)(ROWS) is None


def test_the_first_exchanges_are_silent_and_the_others_as_without() -> None:
    silent, plain = gate(silent_steps=2), gate()
    calls = [(heard(silent(ROWS)), heard(plain(ROWS))) for _ in range(4)]
    assert [bool(ours.any()) for ours, _ in calls] == [False, False, True, True]
    for ours, theirs in calls[2:]:
        assert torch.equal(ours, theirs)
    loud = gate(silent_steps=1, message_dropout=0.0, question_scale=1.0)
    assert not heard(loud(ROWS)).any()
    assert heard(loud(ROWS)).all()


def test_silence_goes_on_from_a_checkpoint() -> None:
    first, second = gate(silent_steps=3), gate(silent_steps=3)
    for _ in range(2):
        first(ROWS)
    second.load_state_dict(first.state_dict())
    assert not heard(second(ROWS)).any()
    assert heard(second(ROWS)).any()


def test_draws_depend_on_seed_and_call_alone_and_move_no_random_state() -> None:
    before = torch.get_rng_state()
    one, again, other = gate(1), gate(1), gate(2)
    first, second = heard(one(ROWS)), heard(one(ROWS))
    assert torch.equal(first, heard(again(ROWS)))
    assert not torch.equal(first, second)
    assert not torch.equal(first, heard(other(ROWS)))
    assert torch.equal(torch.get_rng_state(), before)
