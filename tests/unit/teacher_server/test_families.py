from __future__ import annotations

import pytest
import torch
import transformers as hf

from teacher_server.families import FAMILIES, Family, LayerSpan, family_class, family_for, masked_mean
from teaching_protocol.errors import InvalidSetting, InvalidTensor, UnsupportedFamily
from tests.unit.teacher_server.tiny_models import MODEL_TYPES, TEXT_TYPES, tiny_inputs, tiny_model

CAUSAL = ("llama", "qwen2", "mistral", "gpt2")
GRIDS = ("efficientnet", "resnet")


def own_states(family: Family, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    states = family.embed(inputs)
    return states, family.own_mask(inputs, states)


def last_hidden_state(family: Family, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    whole: torch.Tensor = family.base(**inputs).last_hidden_state
    return whole.flatten(2).transpose(1, 2) if whole.dim() == 4 else whole


def message_like(family: Family, layer: int, tokens: int = 9) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(2, tokens, family.widths[layer], generator=generator)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_all_blocks_equal_the_models_last_hidden_state(model_type: str, attention: str) -> None:
    model = tiny_model(model_type)
    if model_type not in GRIDS:
        model.set_attn_implementation(attention)
    family = family_for(model)
    inputs = tiny_inputs(model_type, 3, 11)
    with torch.no_grad():
        states, mask = own_states(family, inputs)
        finished = family.finish(family.run(states, mask, LayerSpan(0, family.layers)))
        expected = last_hidden_state(family, inputs)
    real = family.own_mask(inputs, finished)
    assert expected.std() > 0.1
    torch.testing.assert_close(finished[real], expected[real], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_every_cut_composes(model_type: str) -> None:
    family = family_for(tiny_model(model_type))
    inputs = tiny_inputs(model_type, 2, 8)
    assert len(family.widths) == family.layers + 1
    with torch.no_grad():
        states, mask = own_states(family, inputs)
        whole = family.run(states, mask, LayerSpan(0, family.layers))
        for cut in range(family.layers + 1):
            middle = family.run(states, mask, LayerSpan(0, cut))
            assert middle.shape[-1] == family.widths[cut]
            upper = family.run(middle, family.own_mask(inputs, middle), LayerSpan(cut, family.layers))
            torch.testing.assert_close(upper, whole, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_captured_states_equal_composed_ones(model_type: str) -> None:
    model = tiny_model(model_type)
    family = family_for(model)
    inputs = tiny_inputs(model_type, 2, 8)
    with torch.no_grad():
        with family.captured(range(family.layers + 1)) as found:
            model(**inputs)
        states, mask = own_states(family, inputs)
        for cut in range(family.layers + 1):
            composed = family.run(states, mask, LayerSpan(0, cut))
            real = family.own_mask(inputs, composed)
            torch.testing.assert_close(found[cut][real], composed[real], atol=1e-6, rtol=1e-6)
    assert not any(block._forward_pre_hooks or block._forward_hooks for block in family.blocks)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_a_message_entering_in_the_middle_gets_a_gradient(model_type: str) -> None:
    family = family_for(tiny_model(model_type))
    middle = family.layers // 2
    states = message_like(family, middle).requires_grad_()
    mask = None if model_type in GRIDS else torch.tensor([[True] * 9, [True] * 6 + [False] * 3])
    answer = family.run(states, mask, LayerSpan(middle, family.layers))
    (gradient,) = torch.autograd.grad((answer[:, :4] * torch.linspace(0, 1, answer.shape[-1])).sum(), states)
    assert gradient.isfinite().all()
    assert gradient.abs().sum() > 1e-3
    if mask is not None:
        assert gradient[~mask].abs().sum() == 0


@pytest.mark.parametrize("model_type", TEXT_TYPES)
def test_padding_does_not_reach_real_tokens(model_type: str) -> None:
    family = family_for(tiny_model(model_type))
    states = message_like(family, 1)
    mask = torch.ones(2, 9, dtype=torch.bool)
    mask[:, 5:] = False
    with torch.no_grad():
        padded = family.run(states, mask, LayerSpan(1, family.layers))
        alone = family.run(states[:, :5], None, LayerSpan(1, family.layers))
    torch.testing.assert_close(padded[:, :5], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("model_type", TEXT_TYPES)
def test_only_decoders_are_causal(model_type: str) -> None:
    family = family_for(tiny_model(model_type))
    states = message_like(family, 2)
    changed = states.clone()
    changed[:, -1] += 1.0
    with torch.no_grad():
        first, second = (family.run(each, None, LayerSpan(2, family.layers))[:, :-1] for each in (states, changed))
    assert torch.allclose(first, second, atol=1e-6) == (model_type in CAUSAL)


@pytest.mark.parametrize("model_type", ["mistral", "qwen2"])
def test_a_sliding_window_hides_what_lies_behind_it(model_type: str) -> None:
    family = family_for(tiny_model(model_type))
    last = LayerSpan(family.layers - 1, family.layers)
    states = message_like(family, last.start)
    changed = states.clone()
    changed[:, 0] += 1.0
    with torch.no_grad():
        first, second = (family.run(each, None, last) for each in (states, changed))
    torch.testing.assert_close(first[:, 5:], second[:, 5:])
    assert not torch.allclose(first[:, 1], second[:, 1])


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_bf16_stays_bf16_and_near_fp32(model_type: str) -> None:
    reference, half = family_for(tiny_model(model_type)), family_for(tiny_model(model_type).bfloat16())
    middle = reference.layers // 2
    states = message_like(reference, middle)
    with torch.no_grad():
        expected = reference.run(states, None, LayerSpan(middle, reference.layers))
        answer = half.run(states.bfloat16(), None, LayerSpan(middle, half.layers))
    assert answer.dtype == torch.bfloat16
    assert (answer.float() - expected).norm() / expected.norm() < 0.05


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_base_model_and_model_with_head_give_one_family(model_type: str) -> None:
    bare, headed = family_for(tiny_model(model_type, head=False)), family_for(tiny_model(model_type))
    assert type(bare) is type(headed)
    assert bare.widths == headed.widths
    assert bare.base.config.model_type == model_type


@pytest.mark.parametrize("model_class", [hf.T5Model, hf.T5ForConditionalGeneration, hf.T5EncoderModel])
def test_of_t5_the_encoder_is_used(model_class: type) -> None:
    model = model_class(tiny_model("t5").config).eval()
    family = family_for(model)
    inputs = tiny_inputs("t5", 2, 6)
    with torch.no_grad():
        states, mask = own_states(family, inputs)
        finished = family.finish(family.run(states, mask, LayerSpan(0, family.layers)))
        expected = model.get_encoder()(**inputs).last_hidden_state
    torch.testing.assert_close(finished[mask], expected[mask], atol=1e-6, rtol=1e-6)


def test_text_is_pooled_by_the_mean_over_real_tokens() -> None:
    states = torch.arange(12.0).reshape(1, 3, 4)
    mask = torch.tensor([[True, True, False]])
    for model_type in ("bert", "llama", "t5"):
        assert torch.equal(family_for(tiny_model(model_type)).pool(states, mask), states[:, :2].mean(dim=1))
    assert torch.equal(masked_mean(states, None), states.mean(dim=1))
    with pytest.raises(InvalidTensor, match=r"mask is \[1, 2\], expected \[1, 3\]"):
        masked_mean(states, mask[:, :2])


@pytest.mark.parametrize("model_type", ["vit", *GRIDS])
def test_images_are_pooled_as_their_own_head_does(model_type: str) -> None:
    family = family_for(tiny_model(model_type, head=False))
    inputs = tiny_inputs(model_type, 2, 0)
    with torch.no_grad():
        whole = family.base(**inputs)
        pooled = family.pool(last_hidden_state(family, inputs), None)
    expected = whole.last_hidden_state[:, 0] if model_type == "vit" else whole.pooler_output.flatten(1)
    torch.testing.assert_close(pooled, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("model_type", GRIDS)
def test_a_convolution_takes_square_grids_without_padding(model_type: str) -> None:
    family = family_for(tiny_model(model_type))
    span = LayerSpan(1, family.layers)
    with pytest.raises(InvalidTensor, match="8 tokens, expected a square grid; send 4 or 9 tokens"):
        family.run(message_like(family, 1, tokens=8), None, span)
    with pytest.raises(InvalidTensor, match="mask hides tokens"):
        family.run(message_like(family, 1, tokens=16), torch.zeros(2, 16, dtype=torch.bool), span)


def test_a_grid_too_small_for_the_strides_is_refused() -> None:
    family = family_for(tiny_model("efficientnet"))
    with pytest.raises(InvalidTensor, match="1 tokens, too small a grid for the strides of blocks 1 to 3"):
        family.run(message_like(family, 1, tokens=1), None, LayerSpan(1, family.layers))


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (3, 2)])
def test_a_span_goes_up(start: int, stop: int) -> None:
    with pytest.raises(InvalidSetting, match="expected 0 <= entry <= exit"):
        LayerSpan(start, stop)


def test_the_table_says_what_the_families_say() -> None:
    assert set(MODEL_TYPES) == set(FAMILIES)
    for model_type, family in FAMILIES.items():
        assert model_type in family.model_types
        assert all(FAMILIES[each] is family for each in family.model_types)


def test_an_unknown_family_is_told_the_known_ones() -> None:
    with pytest.raises(UnsupportedFamily, match=r"'bloom' has no adapter.*bert, distilbert, .*vit"):
        family_class("bloom")
    with pytest.raises(UnsupportedFamily):
        family_for(hf.BloomModel(hf.BloomConfig(vocab_size=8, hidden_size=8, n_layer=1, n_head=2)))
