from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from teacher_server.sessions.codecs import CodecShape, TeacherCodec


def codec(**shape: object) -> TeacherCodec:
    return TeacherCodec(CodecShape(**{"enter_width": 6, "exit_width": 6, "message_width": 4} | shape), seed=3)  # type: ignore[arg-type]


def test_the_seed_decides_the_weights_and_leaves_the_global_generator() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one, same = codec(), codec()
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    other = TeacherCodec(one.shape, seed=4)
    assert not torch.equal(next(iter(one.decoders["6"].parameters())), next(iter(other.decoders["6"][1].parameters())))


def test_codecs_drawn_at_the_same_time_are_those_drawn_alone() -> None:
    alone = {seed: TeacherCodec(codec().shape, seed) for seed in range(4)}
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda seed: (seed, TeacherCodec(codec().shape, seed)), list(alone) * 100))
    for seed, drawn in found:
        assert all(torch.equal(*pair) for pair in zip(drawn.parameters(), alone[seed].parameters(), strict=True))


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_depth_and_widths(depth: int) -> None:
    found = codec(depth=depth, message_width=9)
    linear = [layer for layer in found.encoders["6"] if isinstance(layer, torch.nn.Linear)]
    assert [layer.in_features for layer in linear] == [6] + [9] * (depth - 1)
    assert [layer.out_features for layer in linear] == [9] * depth
    assert found.encoder(6)(torch.randn(2, 3, 6)).shape == (2, 3, 9)
    assert found.decoder(6)(torch.randn(2, 3, 9)).shape == (2, 3, 6)


def test_a_message_is_layer_normed() -> None:
    message = codec().encoder(6)(100 * torch.randn(2, 3, 6))
    torch.testing.assert_close(message.mean(-1), torch.zeros(2, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(message.square().mean(-1), torch.ones(2, 3), atol=1e-2, rtol=0)


def test_a_grid_of_two_widths_has_a_codec_for_each() -> None:
    found = codec(exit_width=10, message_tokens=2, pooling="attention")
    assert sorted(found.encoders) == sorted(found.decoders) == sorted(found.queries) == ["10", "6"]
    assert found.encoder(10)(torch.randn(1, 2, 10)).shape == found.encoder(6)(torch.randn(1, 2, 6)).shape == (1, 2, 4)


def test_without_message_tokens_states_stay() -> None:
    states, mask = torch.randn(2, 3, 6), torch.ones(2, 3, dtype=torch.bool)
    pooled, pooled_mask = codec().pool(states, mask)
    assert pooled is states
    assert pooled_mask is mask


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("pooling", ["mean", "cls", "attention"])
def test_pooling_against_a_plain_loop(pooling: str, count: int) -> None:
    found = codec(message_tokens=count, pooling=pooling)
    states, mask = torch.randn(3, 5, 6), torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0]]).bool()
    pooled, pooled_mask = found.pool(states, mask)
    assert pooled_mask.all()
    assert pooled.shape == (3, count, 6)
    for b in range(3):
        real = states[b][mask[b]].double()
        n = len(real)
        for j in range(count):
            if pooling == "cls":
                wanted = real[j] if j < n else torch.zeros(6).double()
            elif pooling == "mean":
                wanted = real[j * n // count : -(-(j + 1) * n // count)].mean(0)
            else:
                weights = (real @ found.queries["6"][j].double() / 6**0.5).exp()
                wanted = (weights / weights.sum()) @ real
            torch.testing.assert_close(pooled[b, j].double(), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "cls", "attention"])
def test_padding_is_never_pooled(pooling: str) -> None:
    found = codec(message_tokens=2, pooling=pooling)
    states, mask = torch.randn(1, 4, 6), torch.tensor([[True, True, True, False]])
    one = found.pool(states, mask)[0]
    states[0, 3] = 1e4
    assert torch.equal(found.pool(states, mask)[0], one)
