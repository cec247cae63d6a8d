from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from teacher_server.checks import (
    LANGUAGE_PORTS,
    check_backward,
    check_forward,
    check_settings,
    check_step,
    check_student,
)
from teaching_protocol import verbs
from teaching_protocol.errors import InvalidSetting, UnknownPort
from tests.calls import WIDTH, attempt, backward_request, forward_request

CARD = verbs.DescribeReply(
    layers=4, entry=1, exit=4, widths=(32,) * 5, family="bert", heads=("sequence_classification",),
    input_ports=("message", "message_exit", "message_gate", "message_mask", "attention_mask", "input_ids"),
    output_ports=("answer", "answer_state", "state_consistency", "hidden.<layer>", "hidden.<layer>.mean<tokens>",
                  "pooled", "logits", "logits.top<k>"),
    limits=verbs.Limits(rows=16, tokens=32, message_width=64, codec_depth=4),
)  # fmt: skip
SETTINGS = verbs.SessionSettings(message_width=WIDTH, entry=1, exit=4)
REF = verbs.SessionRef("s", 1)


def test_the_good_ones_pass() -> None:
    check_student("Ann 1, Zoë")
    check_settings(SETTINGS, CARD)
    forward = forward_request(REF)
    check_forward(forward, SETTINGS, CARD)
    check_backward(backward_request(forward), SETTINGS, CARD)
    check_step(verbs.StepRequest(REF, 1, 0.0), SETTINGS)


def test_inputs_sent_again_are_checked_like_a_forward() -> None:
    forward = forward_request(REF)
    again = backward_request(forward, inputs=forward.inputs, outputs=("mood",), grad_inputs=("message",))
    with pytest.raises(UnknownPort, match="'mood'"):
        check_backward(again, SETTINGS, CARD)
    check_backward(dataclasses.replace(again, outputs=("answer",)), SETTINGS, CARD)


@pytest.mark.parametrize(
    ("family", "states"),
    [("efficientnet", "a grid"), ("resnet", "a grid"), ("image_student", "a grid"), ("ratings_student", "one token")],
)
def test_what_is_no_sequence_has_no_prefix(family: str, states: str) -> None:
    with pytest.raises(InvalidSetting, match=f"inject 'prefix' needs a sequence, but .* are {states}; use replace or"):
        check_settings(dataclasses.replace(SETTINGS, inject="prefix"), dataclasses.replace(CARD, family=family))


def test_a_teacher_without_head_serves_no_top() -> None:
    bare = dataclasses.replace(CARD, heads=(), output_ports=("answer", "hidden.<layer>", "pooled"))
    for port in ("logits", "logits.top3"):
        with pytest.raises(UnknownPort, match="is not served; this teacher serves answer"):
            check_forward(forward_request(REF, outputs=(port,)), SETTINGS, bare)


LANGUAGE = dataclasses.replace(
    CARD, heads=("causal_lm",), output_ports=(*CARD.output_ports, *LANGUAGE_PORTS), family="llama"
)


@pytest.mark.parametrize("port", ["last_hidden_state", "logprobs.top3", "logprobs.top3.t150", "tokens.top3"])
def test_ports_of_a_language_model(port: str) -> None:
    asked = forward_request(REF, outputs=(port,), inputs={"input_ids": torch.ones(1, 2).long()}, grad_inputs=())
    check_forward(asked, SETTINGS, LANGUAGE)
    with pytest.raises(UnknownPort, match="is not served; this teacher serves answer"):
        check_forward(asked, SETTINGS, CARD)


@pytest.mark.parametrize(
    "port",
    [
        "logprobs.top0",
        "logprobs.top3.t0",
        "logprobs.top3.t",
        "logprobs.top3.t1.5",
        "logprobs.top03",
        "logprobs",
        "tokens",
        "tokens.top",
        "tokens.top3.t100",
        "tokens.top<k>",
        "logprobs.top<k>.t<percent>",
        "last_hidden_state.1",
    ],
)
def test_half_ports_of_a_language_model(port: str) -> None:
    with pytest.raises(UnknownPort):
        check_forward(forward_request(REF, outputs=(port,)), SETTINGS, LANGUAGE)


@pytest.mark.parametrize("port", ["hidden.<layer>", "logits.top<k>", "hidden.", "hidden", "logits.top", "pooled.1", ""])
def test_placeholders_and_halves_are_no_ports(port: str) -> None:
    with pytest.raises(UnknownPort):
        check_forward(forward_request(REF, outputs=(port,)), SETTINGS, CARD)


@pytest.mark.parametrize("port", ["hidden.0.mean1", "hidden.4.mean32", "hidden.2", "logits.top3"])
def test_numbered_ports(port: str) -> None:
    inputs = {"input_ids": torch.ones(1, 2).long()}
    check_forward(forward_request(REF, outputs=(port,), inputs=inputs, grad_inputs=()), SETTINGS, CARD)


@pytest.mark.parametrize(
    "port",
    [
        "hidden.2.mean", "hidden.2.mean0", "hidden.2.mean33", "hidden.2.mean01", "hidden.2.mean-1", "hidden.2.mean1.5",
        "hidden.2.mean+1", "hidden.2.mean 1", "hidden.2.mean\u0661", "hidden.5.mean1", "hidden..mean1", "hidden.mean1",
        "hidden.02.mean1", "hidden.2.max1", "hidden.2.mean1.mean1", "pooled.mean1", "hidden.<layer>.mean<tokens>",
        "hidden.2.mean99999999999999999999",
    ],
)  # fmt: skip
def test_means_that_are_no_ports(port: str) -> None:
    request = forward_request(REF, outputs=(port,), inputs={"input_ids": torch.ones(1, 2).long()})
    with pytest.raises(UnknownPort, match="is not served; this teacher serves answer"):
        check_forward(request, SETTINGS, CARD)


@given(st.floats(), st.floats(), st.floats())
def test_a_step_takes_finite_numbers_only(lr: float, scale: float, norm: float) -> None:
    request = verbs.StepRequest(REF, 1, lr, scale, norm)
    good = all(math.isfinite(value) and value >= 0 for value in (lr, scale, norm)) and lr <= 1e6
    good = good and max(scale, norm) <= 1e30
    try:
        check_step(request, SETTINGS)
    except InvalidSetting:
        assert not good
    else:
        assert good


@given(st.builds(verbs.SessionSettings, message_width=st.integers(-9, 99), entry=st.integers(-1, 5),
                 exit=st.integers(-1, 6), codec_depth=st.integers(-1, 9)))  # fmt: skip
def test_settings_that_pass_are_within_the_card(settings: verbs.SessionSettings) -> None:
    refused = attempt(lambda: check_settings(settings, CARD))
    good = 0 <= settings.entry < settings.exit <= 4 and 1 <= settings.message_width <= 64
    assert (refused is None) == (good and 1 <= settings.codec_depth <= 4)
    assert refused is None or type(refused) is InvalidSetting
