from __future__ import annotations

import pytest
import torch
import transformers as hf

from teacher_server.families import ImageSettings, LayerSpan, head_of
from teacher_server.models.split import FrozenTeacher
from teaching_protocol.errors import InvalidSetting, InvalidTensor, UnknownPort
from tests.unit.teacher_server.tiny_models import (
    MODEL_TYPES,
    VOCABULARY,
    text_bytes,
    tiny_inputs,
    tiny_model,
    tiny_tokenizer,
)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_climbing_and_a_whole_forward_give_the_same(model_type: str) -> None:
    model = tiny_model(model_type)
    teacher = FrozenTeacher(model)
    inputs = teacher.prepare(tiny_inputs(model_type, 3, 9))
    layers = [0, 2, teacher.family.layers]
    climbed = teacher.states(inputs, layers, with_pooled=True)
    assert set(climbed) == {"hidden.0", "hidden.2", f"hidden.{teacher.family.layers}", "pooled"}
    assert not any(states.requires_grad for states in climbed.values())
    if not teacher.heads:
        return
    whole = teacher.states(inputs, layers, with_logits=True, with_pooled=True)
    with torch.no_grad():
        assert torch.equal(whole["logits"], model(**inputs).logits)
    torch.testing.assert_close(whole["pooled"], climbed["pooled"], atol=1e-6, rtol=1e-6)
    for layer in layers:
        states = climbed[f"hidden.{layer}"]
        real = teacher.family.own_mask(inputs, states)
        torch.testing.assert_close(whole[f"hidden.{layer}"][real], states[real], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_a_backward_through_the_span_leaves_the_teacher_as_it_was(model_type: str) -> None:
    model = tiny_model(model_type)
    teacher = FrozenTeacher(model)
    before = teacher.model_hash
    span = teacher.default_span()
    message = torch.randn(2, 16, teacher.family.widths[span.start], requires_grad=True)
    teacher.upper(message, None, span).square().sum().backward()
    assert message.grad is not None
    assert message.grad.abs().sum() > 0
    assert not model.training
    assert all(not weight.requires_grad and weight.grad is None for weight in model.parameters())
    assert FrozenTeacher(model).model_hash == before


def test_blocks_above_what_is_asked_for_are_not_run() -> None:
    teacher = FrozenTeacher(tiny_model("bert"))
    ran: list[int] = []
    for number, block in enumerate(teacher.family.blocks):
        block.register_forward_hook(lambda *_, number=number: ran.append(number))
    teacher.states(tiny_inputs("bert", 1, 4), [1, 2])
    assert ran == [0, 1]


def test_the_hash_tells_every_bit_the_names_and_the_dtype() -> None:
    def teacher() -> FrozenTeacher:
        return FrozenTeacher(tiny_model("bert"))

    first, changed = teacher(), teacher()
    changed.family.base.embeddings.word_embeddings.weight.data[3, 4] += 1e-6
    assert len(first.model_hash) == 64
    assert first.model_hash == teacher().model_hash
    others = {changed.model_hash, FrozenTeacher(tiny_model("bert").bfloat16()).model_hash}
    others.add(FrozenTeacher(tiny_model("bert", head=False)).model_hash)
    assert len(others | {first.model_hash}) == 4


def test_the_tokenizers_hash_does_not_depend_on_what_was_tokenized() -> None:
    fresh, used = (FrozenTeacher(tiny_model("bert"), tokenizer=tiny_tokenizer()) for _ in range(2))
    used.prepare({"text": text_bytes("good film")}, max_tokens=1)
    assert used.tokenizer_hash == fresh.tokenizer_hash != ""
    assert FrozenTeacher(tiny_model("bert")).tokenizer_hash == ""


def test_heads_and_labels() -> None:
    classifier, decoder, encoder = (FrozenTeacher(tiny_model(each)) for each in ("vit", "llama", "t5"))
    assert (classifier.heads, classifier.labels) == (("image_classification",), ("LABEL_0", "LABEL_1", "LABEL_2"))
    assert (decoder.heads, decoder.labels) == (("causal_lm",), ())
    assert (encoder.heads, encoder.labels) == ((), ())
    assert FrozenTeacher(tiny_model("bert", head=False)).labels == ()
    assert (classifier.vocabulary_size, decoder.vocabulary_size) == (0, VOCABULARY)
    assert head_of("BertForMaskedLM") == ""


@pytest.mark.parametrize(("layers", "start"), [(1, 0), (2, 1), (3, 1), (6, 2), (12, 4)])
def test_the_default_span_has_a_block(layers: int, start: int) -> None:
    config = hf.BertConfig(vocab_size=8, hidden_size=8, num_hidden_layers=layers, num_attention_heads=1)
    config.intermediate_size = 8
    assert FrozenTeacher(hf.BertModel(config)).default_span() == LayerSpan(start, layers)


def test_a_decoders_classification_head_finds_the_last_real_token() -> None:
    config = hf.LlamaConfig(**{**tiny_model("llama").config.to_dict(), "pad_token_id": None, "num_labels": 3})
    teacher = FrozenTeacher(hf.LlamaForSequenceClassification(config))
    inputs = tiny_inputs("llama", 3, 8)
    together = teacher.states(teacher.prepare(inputs), [], with_logits=True)["logits"]
    alone = teacher.prepare({name: tensor[2:, :6] for name, tensor in inputs.items()})
    torch.testing.assert_close(together[2:], teacher.states(alone, [], with_logits=True)["logits"])


def test_inputs_take_the_bodys_dtype() -> None:
    teacher = FrozenTeacher(tiny_model("resnet").bfloat16(), image=ImageSettings(32))
    prepared = teacher.prepare({"image": torch.zeros(1, 3, 8, 8, dtype=torch.uint8)})
    assert prepared["pixel_values"].dtype == torch.bfloat16
    message = torch.randn(1, 4, teacher.family.widths[1], requires_grad=True)
    answer = teacher.upper(message, torch.ones(1, 4, dtype=torch.bool), LayerSpan(1, 2))
    answer.float().sum().backward()
    assert message.grad is not None
    assert (answer.dtype, message.grad.dtype) == (torch.bfloat16, torch.float32)


def test_bad_spans_states_and_layers_are_refused() -> None:
    teacher = FrozenTeacher(tiny_model("t5"))
    states = torch.zeros(2, 3, 32)
    with pytest.raises(InvalidSetting, match="span 1:5 on a teacher of 4 layers"):
        teacher.upper(states, None, LayerSpan(1, 5))
    with pytest.raises(InvalidTensor, match=r"at cut 1 are \[2, 3, 31\] float32, expected \[batch, tokens, 32\]"):
        teacher.upper(states[:, :, 1:], None, LayerSpan(1, 4))
    with pytest.raises(InvalidTensor, match="int64, expected"):
        teacher.upper(states.long(), None, LayerSpan(1, 4))
    with pytest.raises(InvalidTensor, match=r"mask is \[2, 2\], expected \[2, 3\]"):
        teacher.upper(states, torch.ones(2, 2, dtype=torch.bool), LayerSpan(1, 4))
    with pytest.raises(UnknownPort, match=r"`hidden.5` asked for, this teacher has hidden.0 to hidden.4"):
        teacher.states(tiny_inputs("t5", 1, 3), [5])
    with pytest.raises(UnknownPort, match="this teacher has no head"):
        teacher.states(tiny_inputs("t5", 1, 3), [], with_logits=True)
