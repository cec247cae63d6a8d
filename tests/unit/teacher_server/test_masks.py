"""Masks written out without being read are those that transformers builds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from teacher_server.families.masks import added_mask, attention_mask, hides_tokens, written_mask
from tests.unit.teacher_server.tiny_models import tiny_model

CONFIG: Any = tiny_model("mistral").config


@settings(deadline=None, max_examples=60)
@given(st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=1, max_size=4), st.booleans(), st.data())
def test_a_written_mask_is_that_of_transformers(rows: list[list[bool]], causal: bool, data: st.DataObject) -> None:
    mask = torch.tensor(rows)
    window = data.draw(st.sampled_from([None, 1, 2, 4])) if causal else None
    config = type(CONFIG)(**{**CONFIG.to_dict(), "sliding_window": window})
    states = torch.zeros(*mask.shape, 4)
    for attention in ("sdpa", "eager"):
        config._attn_implementation = attention
        wanted = attention_mask(config, states, mask, causal, window)
        found = written_mask(mask, causal, window)
        if wanted is None:  # left away, because it hides nothing but what is to come
            assert bool(mask.all())
            continue
        if attention == "eager":
            found = added_mask(found, states.dtype)
        assert wanted.dtype == found.dtype
        assert torch.equal(wanted.expand_as(found), found)


@pytest.mark.parametrize(("mask", "hides"), [(None, False), ([[True]], False), ([[True, False]], True)])
def test_what_hides_a_token(mask: list[list[bool]] | None, hides: bool) -> None:
    assert hides_tokens(None if mask is None else torch.tensor(mask)) is hides
