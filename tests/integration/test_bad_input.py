"""Whatever a caller sends wrong gets a typed error with a sentence; the next student is served correctly."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from teaching_protocol import verbs
from teaching_protocol.errors import (
    CallerError,
    InvalidSetting,
    InvalidTensor,
    NonFiniteError,
    TeachingError,
    UnknownPort,
)
from tests.calls import WIDTH, Caller, backward_request, forward_request, in_s
from tests.integration.processes import Address

good_names = (f"good-{number}" for number in itertools.count())

NAN, INFINITY = float("nan"), float("inf")
IDS = torch.tensor([[5, 6, 7], [5, 6, 1]])
MASK = torch.tensor([[1, 1, 1], [1, 1, 0]])
MESSAGE = torch.zeros(2, 3, WIDTH)


pytestmark = pytest.mark.usefixtures("next_student_is_served")


def message(**changes: Any) -> dict[str, Any]:
    return {"inputs": {"message": MESSAGE} | changes}


def own(ids: torch.Tensor | None = IDS, mask: torch.Tensor | None = MASK) -> dict[str, Any]:
    found = {"input_ids": ids, "attention_mask": mask}
    return {
        "inputs": {name: value for name, value in found.items() if value is not None},
        "outputs": ("hidden.1",), "grad_inputs": (), "backward_follows": False,
    }  # fmt: skip


def with_value(value: float) -> torch.Tensor:
    spoiled = MESSAGE.clone()
    spoiled[1, 2, 3] = value
    return spoiled


BAD_FORWARDS: dict[str, tuple[dict[str, Any], type[TeachingError], str]] = {
    "message of two dimensions": (message(message=torch.zeros(2, 3)), InvalidTensor, r"expected float \[rows, tokens"),
    "message of four dimensions": (message(message=MESSAGE[None]), InvalidTensor, r"expected float \[rows, tokens"),
    "message of integers": (message(message=MESSAGE.long()), InvalidTensor, r"torch.int64 .*expected float"),
    "message too wide": (message(message=torch.zeros(2, 3, 9)), InvalidTensor, "width 9, .* message_width 8"),
    "message without rows": (message(message=MESSAGE[:0]), InvalidTensor, r"\[0, 3, 8\], expected"),
    "message without tokens": (message(message=MESSAGE[:, :0]), InvalidTensor, r"\[2, 0, 8\], expected"),
    "message of too many rows": (message(message=torch.zeros(17, 3, WIDTH)), InvalidSetting, "rows: received 17"),
    "message of too many tokens": (message(message=torch.zeros(2, 33, WIDTH)), InvalidSetting, "tokens: received 33"),
    "NaN in the message": (message(message=with_value(NAN)), NonFiniteError, "message: 1 of 48 numbers are NaN"),
    "infinity in the message": (message(message=with_value(INFINITY)), NonFiniteError, "1 of 48"),
    "NaN in the gate": (message(message_gate=torch.tensor([1.0, NAN])), NonFiniteError, "message_gate: 1 of 2"),
    "gate of another length": (message(message_gate=torch.ones(3)), InvalidTensor, r"\[3\], expected \[2\]"),
    "gate of integers": (message(message_gate=torch.tensor([1, 5])), InvalidTensor, "message_gate: torch.int64"),
    "mask of another shape": (message(message_mask=torch.ones(2, 4).bool()), InvalidTensor, r"expected \[2, 3\]"),
    "mask of integers": (message(message_mask=torch.ones(2, 3).long()), InvalidTensor, "expected bool"),
    "mask hides a whole row": (
        message(message_mask=torch.tensor([[True, True, True], [False, False, False]])),
        InvalidTensor, "at least one real token in every row",
    ),
    "mask without a message": (
        {"inputs": {"message_mask": MASK.bool()}, "grad_inputs": ()}, InvalidTensor, "without a message"),
    "gradient wanted of a mask": (
        {"grad_inputs": ("message", "message_mask")}, InvalidTensor, "grad_inputs names 'message_mask'"),
    "gradient wanted of nothing sent": ({"grad_inputs": ("message_exit",)}, InvalidTensor, "names 'message_exit'"),
    "no input": ({"inputs": {}, "grad_inputs": ()}, InvalidTensor, "no input was sent"),
    "no output": ({"outputs": ()}, UnknownPort, "no output port was asked for"),
    "output named twice": ({"outputs": ("answer", "answer")}, UnknownPort, "named twice"),
    "unknown input port": (message(question=MESSAGE), UnknownPort, "'question' is unknown; this teacher takes"),
    "unknown output port": ({"outputs": ("answer", "mood")}, UnknownPort, "'mood' is not served; this teacher serves"),
    "pixels for a text teacher": (
        {"inputs": {"pixel_values": torch.zeros(2, 3, 8, 8)}, "grad_inputs": ()}, UnknownPort, "'pixel_values' is"),
    "layer beyond the last": (own() | {"outputs": ("hidden.5",)}, UnknownPort, "'hidden.5' is not served"),
    "layer below the first": (own() | {"outputs": ("hidden.-1",)}, UnknownPort, "'hidden.-1' is not served"),
    "layer written oddly": (own() | {"outputs": ("hidden.01",)}, UnknownPort, "'hidden.01' is not served"),
    "layer in other digits": (own() | {"outputs": ("hidden.٣",)}, UnknownPort, "is not served"),
    "top zero": (own() | {"outputs": ("logits.top0",)}, UnknownPort, "'logits.top0' is not served"),
    "port without its input": ({"outputs": ("state_consistency",)}, UnknownPort, "about the raw input"),
    "answer without a message": (own() | {"outputs": ("answer",)}, UnknownPort, "needs the input port 'message'"),
    "different numbers of rows": (
        message(input_ids=torch.cat([IDS, IDS])) | {"outputs": ("answer", "logits")},
        InvalidTensor, "different numbers of rows"),
    "other tokens than the teacher's": (
        message(input_ids=torch.cat([IDS, IDS], 1)) | {"outputs": ("cross_consistency",)},
        InvalidTensor, "3 tokens, but the teacher's own state has 6"),
    "ids that are floats": (own(IDS.float()), InvalidTensor, "float32, expected .* int64"),
    "ids beyond the vocabulary": (own(IDS + 100), InvalidTensor, "expected 0 to 59"),
    "ids without rows": (own(IDS[:0], MASK[:0]), InvalidTensor, "with something in every row"),
    "ids without tokens": (own(IDS[:, :0], MASK[:, :0]), InvalidTensor, "with something in every row"),
    "ids of one dimension": (own(IDS[0], None), InvalidTensor, "with something in every row"),
    "ids of one dimension beside a mask": (own(IDS[:, 0]), InvalidTensor, "with something in every row"),
    "ids of three dimensions": (own(IDS[..., None], None), InvalidTensor, r"\[2, 3, 1\] int64, expected .*tokens"),
    "too many ids": (own(torch.full((2, 33), 5), None), InvalidTensor, "33 tokens a row, the limit is 32"),
    "attention mask of one dimension": (own(mask=MASK[:, 0]), InvalidTensor, "attention_mask: shape"),
    "attention mask of three dimensions": (own(mask=MASK[..., None]), InvalidTensor, "attention_mask"),
    "attention mask shorter than the ids": (own(mask=torch.ones(2, 2).long()), InvalidTensor, "attention_mask"),
    "attention mask without a one": (own(mask=torch.zeros(2, 3).long()), InvalidTensor, "a 1 in every row"),
    "attention mask of other numbers": (own(mask=MASK * 2), InvalidTensor, "0 and 1 only"),
    "attention mask alone": (own(None), InvalidTensor, "expected that of input_ids .none were sent"),
    "text that is no UTF-8": (
        own(None, None) | {"inputs": {"text": torch.tensor([[0xC3, 0x28]], dtype=torch.uint8)}},
        InvalidTensor, "row 0 of `text` is no UTF-8"),
    "text of integers": (own(None, None) | {"inputs": {"text": IDS}}, InvalidTensor, "`text` is .* expected"),
    "text and ids": (
        own() | {"inputs": {"text": IDS.to(torch.uint8), "input_ids": IDS}}, InvalidSetting, "exclude each other"),
    "a scalar": (own(torch.tensor(5), None), InvalidTensor, "with something in every row"),
    "text of one dimension": (
        own(None, None) | {"inputs": {"text": IDS[0].to(torch.uint8)}}, InvalidTensor, "with something in every row"),
    "text of three dimensions": (
        own(None, None) | {"inputs": {"text": IDS[None].to(torch.uint8)}}, InvalidTensor, "zero padded"),
    "empty call id": ({"call_id": ""}, InvalidSetting, "call_id is empty"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_FORWARDS)
def test_bad_forward(name: str, caller: Caller) -> None:
    changes, error, sentence = BAD_FORWARDS[name]
    with pytest.raises(error, match=sentence):
        caller.forward(**changes)


BAD_GRADS: dict[str, tuple[dict[str, Any], type[TeachingError], str]] = {
    "no gradient": ({"grads": {}}, InvalidTensor, "without gradients"),
    "NaN in the gradient": ({"grads": {"answer": with_value(NAN)}}, NonFiniteError, "answer: 1 of 48"),
    "infinity in the gradient": ({"grads": {"answer": with_value(-INFINITY)}}, NonFiniteError, "lower the learning"),
    "gradient of another shape": ({"grads": {"answer": MESSAGE[:1]}}, InvalidTensor, r"expected float \[2, 3, 8\]"),
    "gradient of integers": ({"grads": {"answer": MESSAGE.long()}}, InvalidTensor, "torch.int64"),
    "gradient of an unknown port": ({"grads": {"mood": MESSAGE}}, InvalidTensor, "'mood' .* the Forward gave answer"),
    "no forward id": ({"forward_id": ""}, InvalidSetting, "forward_id is empty"),
    "gradient that overflows": ({"grads": {"answer": MESSAGE + 3e38}}, NonFiniteError, "were not applied"),
}


@pytest.mark.parametrize("name", BAD_GRADS)
def test_bad_backward(name: str, caller: Caller) -> None:
    changes, error, sentence = BAD_GRADS[name]
    forward, _ = caller.forward()
    before = caller.export()
    with pytest.raises(error, match=sentence):
        caller.backward(forward, **changes)
    assert caller.export() == before, "a refused gradient was gathered"
    assert caller.backward(forward).grads["message"].abs().sum() > 0  # the right one is still welcome


BAD_SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    "no width": ({"message_width": 0}, "message_width: received 0, accepted are 1 to 4096"),
    "too wide": ({"message_width": 4097}, "received 4097"),
    "entry above the exit": ({"entry": 3, "exit": 2}, "exit: received 2, accepted are 4"),
    "entry below the first layer": ({"entry": -1}, "entry: received -1"),
    "exit above the last layer": ({"exit": 5}, "exit: received 5, accepted are 2 to 4"),
    "negative tokens": ({"message_tokens": -1}, "message_tokens: received -1"),
    "too many tokens": ({"message_tokens": 33}, "accepted are 0 to 32"),
    "too deep": ({"codec_depth": 99}, "codec_depth: received 99"),
    "unknown pooling": ({"pooling": "max"}, "'max', accepted are mean, cls, attention"),
    "unknown injection": ({"inject": "mix"}, "'mix', accepted are replace, add, prefix"),
    "unknown source": ({"answer_from": "moon"}, "accepted are message, message_and_input"),
    "unknown optimizer": ({"optimizer": verbs.OptimizerSettings("lion")}, "'lion' is unknown; use one of adam, adamw"),
    "beta out of range": ({"optimizer": verbs.OptimizerSettings(beta1=2.0)}, "Invalid beta"),
    "NaN for a setting": ({"optimizer": verbs.OptimizerSettings(eps=NAN)}, "optimizer.eps: received nan"),
}


@pytest.mark.parametrize("name", BAD_SETTINGS)
def test_bad_settings(name: str, server: Address) -> None:
    changes, sentence = BAD_SETTINGS[name]
    with pytest.raises(InvalidSetting, match=sentence), Caller(server.name, "never", **changes):
        pass


@pytest.mark.parametrize("student", ["", "   ", "a" * 129, "a\nb"])
def test_bad_name(student: str, server: Address) -> None:
    with pytest.raises(InvalidSetting, match="give 1 to 128 printable"), Caller(server.name, student):
        pass


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [({"lr": NAN}, "lr: received nan"), ({"lr": -1.0}, "lr: received -1"), ({"grad_scale": INFINITY}, "grad_scale")],
)
def test_bad_step(changes: dict[str, float], sentence: str, caller: Caller) -> None:
    forward, _ = caller.forward()
    caller.backward(forward)
    before = caller.export()
    with pytest.raises(InvalidSetting, match=sentence):
        caller.step(1, **changes)
    assert caller.export() == before
    assert caller.step(1).step == 1


def test_an_error_of_the_caller_is_never_worth_a_retry(caller: Caller) -> None:
    request = forward_request(caller.session, outputs=("mood",))
    with pytest.raises(CallerError) as failure:
        caller.teacher.forward(request, in_s(5))
    assert failure.value.retry_after_s == 0
    with pytest.raises(CallerError):
        caller.teacher.backward(backward_request(request), in_s(5))
