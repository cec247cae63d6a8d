from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.nn.functional import interpolate

from teacher_server.families import ImageSettings
from teacher_server.models.split import FrozenTeacher
from teaching_protocol.errors import InvalidSetting, InvalidTensor, TeachingError, UnknownPort
from tests.unit.teacher_server.tiny_models import TEXT_TYPES, text_bytes, tiny_inputs, tiny_model, tiny_tokenizer


def test_text_becomes_ids_and_mask() -> None:
    teacher = FrozenTeacher(tiny_model("bert"), tokenizer=tiny_tokenizer())
    assert teacher.input_ports == ("attention_mask", "input_ids", "text")
    prepared = teacher.prepare({"text": text_bytes("good über film", "bad", ""), "message": torch.zeros(3, 1, 4)})
    assert prepared["input_ids"].tolist() == [[5, 8, 7], [6, 1, 1], [1, 1, 1]]
    assert prepared["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0], [1, 0, 0]]
    assert teacher.prepare({"text": text_bytes("good bad film")}, max_tokens=2)["input_ids"].tolist() == [[5, 6]]
    assert teacher.prepare({"text": text_bytes("good " * 100)})["input_ids"].shape == (1, 40)  # the position table
    assert teacher.prepare({"text": torch.zeros(2, 0, dtype=torch.uint8)})["input_ids"].shape == (2, 1)


def test_ids_under_the_mask_do_not_matter() -> None:
    teacher = FrozenTeacher(tiny_model("roberta"))
    mask = torch.tensor([[1, 1, 0]])
    first = teacher.prepare({"input_ids": torch.tensor([[7, 8, 9]]), "attention_mask": mask})
    second = teacher.prepare({"input_ids": torch.tensor([[7, 8, 30]]), "attention_mask": mask.bool()})
    assert torch.equal(first["input_ids"], second["input_ids"])
    assert second["attention_mask"].tolist() == [[1, 1, 0]]
    assert teacher.prepare({"input_ids": torch.tensor([[7, 8]])})["attention_mask"].tolist() == [[1, 1]]


@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_is_resized_and_normalised(channels: int) -> None:
    settings = ImageSettings(32, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    teacher = FrozenTeacher(tiny_model("vit"), image=settings)
    image = torch.randint(0, 256, (2, channels, 28, 20), dtype=torch.uint8)
    pixels = teacher.prepare({"image": image})["pixel_values"]
    wanted = interpolate(image.float(), (32, 32), mode="bilinear", antialias=True) / 255
    mean, std = (torch.tensor(each).view(1, 3, 1, 1) for each in (settings.mean, settings.std))
    torch.testing.assert_close(pixels, (wanted.expand(2, 3, 32, 32) - mean) / std)
    assert teacher.states({"pixel_values": pixels}, [1])["hidden.1"].shape == (2, 17, 32)


def ids(*rows: list[int]) -> torch.Tensor:
    return torch.tensor(rows)


BAD_INPUTS: dict[str, tuple[str, Callable[[], dict[str, torch.Tensor]], type[TeachingError], str]] = {
    "nothing": (
        "bert",
        lambda: {},
        InvalidTensor,
        "no `input_ids` received; send one of attention",
    ),
    "no pixels": ("vit", lambda: {}, InvalidTensor, "no `pixel_values` received"),
    "modality": ("bert", lambda: {"image": torch.zeros(1, 3, 8, 8)}, UnknownPort, "does not read `image`"),
    "no tokenizer": ("gpt2", lambda: {"text": text_bytes("a")}, UnknownPort, "does not read `text`"),
    "text to images": ("vit", lambda: {"text": text_bytes("a")}, UnknownPort, "does not read `text`"),
    "two texts": (
        "bert",
        lambda: {"text": text_bytes("a"), "input_ids": ids([5])},
        InvalidSetting,
        "exclude each other",
    ),
    "ids int32": ("bert", lambda: {"input_ids": ids([5]).int()}, InvalidTensor, r"`input_ids` is \[1, 1\] int32, exp"),
    "ids 1-d": ("bert", lambda: {"input_ids": ids([5])[0]}, InvalidTensor, r"\[1\] int64, expected \[batch, tokens\]"),
    "ids empty": ("bert", lambda: {"input_ids": torch.zeros(0, 4).long()}, InvalidTensor, r"\[0, 4\]"),
    "ids high": ("bert", lambda: {"input_ids": ids([5, 60])}, InvalidTensor, "from 5 to 60, expected 0 to 59"),
    "ids low": ("bert", lambda: {"input_ids": ids([-1, 5])}, InvalidTensor, "from -1 to 5"),
    "too long": ("bert", lambda: {"input_ids": ids([5] * 41)}, InvalidTensor, "41 tokens a row, the limit is 40"),
    "offset": (
        "roberta",
        lambda: {"input_ids": ids([5] * 39)},
        InvalidTensor,
        "39 tokens a row, the limit is 38",
    ),
    "mask shape": (
        "bert",
        lambda: {"input_ids": ids([5, 6]), "attention_mask": ids([1])},
        InvalidTensor,
        r"`attention_mask` is \[1, 1\] int64, expected \[1, 2\]",
    ),
    "mask dtype": (
        "bert",
        lambda: {"input_ids": ids([5]), "attention_mask": torch.ones(1, 1)},
        InvalidTensor,
        "float32, expected",
    ),
    "mask values": ("bert", lambda: {"input_ids": ids([5]), "attention_mask": ids([2])}, InvalidTensor, "0 and 1 only"),
    "mask row": (
        "bert",
        lambda: {"input_ids": ids([5], [6]), "attention_mask": ids([1], [0])},
        InvalidTensor,
        "a 1 in every row",
    ),
    "text dtype": ("bert", lambda: {"text": ids([97])}, InvalidTensor, r"`text` is \[1, 1\] int64, expected"),
    "text bytes": ("bert", lambda: {"text": text_bytes("ü")[:, :1]}, InvalidTensor, "row 0 of `text` is no UTF-8"),
    "image dtype": (
        "vit",
        lambda: {"image": torch.zeros(1, 3, 8, 8)},
        InvalidTensor,
        r"`image` is .* float32",
    ),
    "image channels": (
        "vit",
        lambda: {"image": torch.zeros(1, 2, 8, 8, dtype=torch.uint8)},
        InvalidTensor,
        r"expected \[batch, 1 or 3, height, width\] uint8",
    ),
    "pixels side": (
        "vit",
        lambda: {"pixel_values": torch.zeros(1, 3, 16, 16)},
        InvalidTensor,
        r"expected \[batch, 3, 32, 32\] float",
    ),
    "pixels NaN": (
        "vit",
        lambda: {"pixel_values": torch.full((1, 3, 32, 32), torch.nan)},
        InvalidTensor,
        "holds NaN or infinity",
    ),
    "two images": (
        "vit",
        lambda: {"pixel_values": torch.zeros(1, 3, 32, 32), "image": torch.zeros(1, 3, 8, 8, dtype=torch.uint8)},
        InvalidSetting,
        "exclude each other",
    ),
}


@pytest.mark.parametrize("case", BAD_INPUTS)
def test_bad_inputs_are_refused_with_a_sentence(case: str) -> None:
    model_type, inputs, error, sentence = BAD_INPUTS[case]
    teacher = FrozenTeacher(tiny_model(model_type), tokenizer=tiny_tokenizer() if model_type == "bert" else None)
    with pytest.raises(error, match=sentence):
        teacher.prepare(inputs())


@pytest.mark.parametrize("model_type", TEXT_TYPES)
def test_prepared_ids_are_the_ids_that_were_sent(model_type: str) -> None:
    inputs = tiny_inputs(model_type, 2, 5)
    prepared = FrozenTeacher(tiny_model(model_type)).prepare(inputs)
    real = inputs["attention_mask"].bool()
    assert torch.equal(prepared["input_ids"][real], inputs["input_ids"][real])
    assert torch.equal(prepared["attention_mask"], inputs["attention_mask"])
