"""The student-side codec: shapes, pooling, masks, seeds and gradients."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from student_client.codecs import CodecShape, StudentCodec
from student_models.student import States
from teaching_protocol.errors import InvalidSetting, InvalidTensor

WIDTH, MESSAGE = 6, 4


def ragged(lengths: tuple[int, ...] = (5, 3, 1), tokens: int = 5) -> States:
    mask = torch.arange(tokens)[None, :] < torch.tensor(lengths)[:, None]
    hidden = torch.randn(len(lengths), tokens, WIDTH, generator=torch.Generator().manual_seed(0))
    return States(hidden, mask)


def codec(seed: int = 0, **shape: Any) -> StudentCodec:
    return StudentCodec(CodecShape(WIDTH, MESSAGE, **shape), seed)


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_states_become_messages_and_messages_states(depth: int) -> None:
    states, unit = ragged(), codec(depth=depth)
    message = unit.encode(states.hidden)
    assert message.shape == (3, 5, MESSAGE)
    assert unit.decode(message).shape == states.hidden.shape
    assert sum(isinstance(layer, torch.nn.Linear) for layer in unit.encoder) == depth
    assert sum(isinstance(layer, torch.nn.Linear) for layer in unit.decoder) == depth


def test_a_new_encoders_messages_are_layer_normed() -> None:
    message = codec().encode(100 * ragged().hidden + 3)
    torch.testing.assert_close(message.mean(-1), torch.zeros(3, 5), atol=1e-5, rtol=0)
    torch.testing.assert_close(message.var(-1, unbiased=False), torch.ones(3, 5), atol=1e-3, rtol=0)


def test_the_hidden_layer_has_the_larger_width() -> None:
    for width, message in ((8, 3), (3, 8)):
        unit = StudentCodec(CodecShape(width, message))
        inner = [layer for layer in (*unit.encoder, *unit.decoder) if isinstance(layer, torch.nn.Linear)]
        assert [(layer.in_features, layer.out_features) for layer in inner] == [
            (width, 8),
            (8, message),
            (message, 8),
            (8, width),
        ]


def test_the_seed_alone_decides_the_weights_and_the_global_random_state_stays() -> None:
    shape = {"pooling": "attention", "message_tokens": 2}
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = codec(seed=7, **shape)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    again, other = codec(seed=7, **shape), codec(seed=8, **shape)
    assert first.state_dict().keys() == again.state_dict().keys()
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in first.state_dict().items())
    assert not torch.equal(first.encoder[1].weight, other.encoder[1].weight)


def test_no_message_tokens_leaves_states_as_they_are() -> None:
    states = ragged()
    assert codec(message_tokens=0).pool(states) is states


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_mean_pooling_takes_even_segments_of_each_rows_real_tokens(count: int) -> None:
    states = ragged()
    pooled = codec(message_tokens=count).pool(states)
    for row, length in enumerate((5, 3, 1)):
        for j in range(count):
            start, stop = j * length // count, math.ceil((j + 1) * length / count)
            expected = states.hidden[row, start:stop].mean(0)
            torch.testing.assert_close(pooled.hidden[row, j], expected)
    assert pooled.mask.all()


def test_mean_pooling_knows_real_tokens_wherever_they_stand() -> None:
    states = ragged((3,), tokens=3)
    mask = torch.tensor([[False, True, False, True, True]])
    spread = States(torch.full((1, 5, WIDTH), torch.nan), mask)
    spread.hidden[mask] = states.hidden[0]
    unit = codec(message_tokens=3)
    torch.testing.assert_close(unit.pool(spread).hidden, unit.pool(states).hidden)


def test_cls_pooling_takes_the_first_tokens() -> None:
    states = ragged()
    one, two = codec(message_tokens=1, pooling="cls").pool(states), codec(message_tokens=2, pooling="cls").pool(states)
    assert torch.equal(one.hidden, states.hidden[:, :1])
    assert torch.equal(two.hidden[:2], states.hidden[:2, :2])
    assert two.mask.tolist() == [[True, True], [True, True], [True, False]]


def test_attention_pooling_equals_plain_attention_over_real_tokens() -> None:
    states, unit = ragged(), codec(message_tokens=2, pooling="attention")
    pooled = unit.pool(states)
    assert unit.queries is not None
    for row, length in enumerate((5, 3, 1)):
        real = states.hidden[row, :length]
        keys = (real - real.mean(-1, keepdim=True)) / (real.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        weights = torch.softmax(unit.queries @ keys.T / WIDTH**0.5, dim=-1)
        torch.testing.assert_close(pooled.hidden[row], weights @ real, rtol=1e-5, atol=1e-6)
    assert pooled.mask.all()


@pytest.mark.parametrize("pooling", ["mean", "cls", "attention"])
def test_padding_changes_no_pooling(pooling: str) -> None:
    states, unit = ragged(), codec(message_tokens=2, pooling=pooling)
    dirty = States(states.hidden.masked_fill(~states.mask[..., None], torch.nan), states.mask)
    wider = States(
        torch.cat([states.hidden, 9 * states.hidden], 1), torch.cat([states.mask, torch.zeros_like(states.mask)], 1)
    )
    clean = unit.pool(states)
    for other in (dirty, wider):
        torch.testing.assert_close(unit.pool(other).hidden, clean.hidden)
        assert torch.equal(unit.pool(other).mask, clean.mask)


@pytest.mark.parametrize("pooling", ["mean", "cls", "attention"])
def test_a_row_without_tokens_gives_zeros_and_finite_gradients(pooling: str) -> None:
    hidden = torch.randn(2, 3, WIDTH, requires_grad=True)
    mask = torch.tensor([[True, True, True], [False, False, False]])
    unit = codec(message_tokens=2, pooling=pooling)
    pooled = unit.pool(States(hidden, mask))
    unit.encode(pooled.hidden).square().sum().backward()
    assert not pooled.hidden[1].any()
    assert pooled.mask.tolist() == [[True, True], [False, False]]
    assert hidden.grad is not None
    assert hidden.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in unit.parameters() if p.grad is not None)


@pytest.mark.parametrize("pooling", ["mean", "cls", "attention"])
def test_every_part_gets_a_gradient(pooling: str) -> None:
    states, unit = ragged(), codec(message_tokens=2, pooling=pooling)
    answer = unit.decode(unit.encode(unit.pool(states).hidden))
    (answer - 1).pow(2).mean().backward()
    for name, parameter in unit.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("pooling", ["mean", "cls", "attention"])
def test_pooling_and_codec_run_in_mixed_precision(pooling: str) -> None:
    unit = codec(message_tokens=2, pooling=pooling)
    with torch.autocast("cpu", torch.bfloat16):
        message = unit.encode(unit.pool(ragged()).hidden)
    assert message.shape == (3, 2, MESSAGE)
    assert message.isfinite().all()


@pytest.mark.parametrize(
    "shape",
    [{"message_tokens": -1}, {"depth": 0}, {"pooling": "max"}, {"width": 0}, {"message_width": 0}],
)
def test_a_shape_that_cannot_be_is_refused(shape: dict[str, Any]) -> None:
    with pytest.raises(InvalidSetting, match=next(iter(shape))):
        CodecShape(**({"width": WIDTH, "message_width": MESSAGE} | shape))


def test_states_and_messages_of_another_width_are_refused() -> None:
    unit = codec()
    with pytest.raises(InvalidTensor, match=r"hidden: received shape \[1, 2, 9\]"):
        unit.encode(torch.zeros(1, 2, 9))
    with pytest.raises(InvalidTensor, match="message: received shape"):
        unit.decode(torch.zeros(2, MESSAGE))
