from __future__ import annotations

import csv
import itertools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

from task_data import load_data, teacher_view
from task_data.flags import data_fields
from teacher_server.finetuning.finetune import Finetuned, finetune
from teacher_server.finetuning.finetune_config import FinetuneConfig, load_finetune_config
from teacher_server.models.loading import load_teacher
from teacher_server.models.split import FrozenTeacher
from teaching_protocol.errors import ConfigError, DataError, ModelLoadError, NonFiniteError, UnsupportedFamily
from tests.unit.teacher_server.served_students import run_folder
from tests.unit.teacher_server.tiny_models import text_bytes, tiny_model, tiny_tokenizer

Row = tuple[str, str]
ModelFolder = Callable[[str], Path]


def reviews(fillers: str) -> list[Row]:
    """Sentences of a verdict and some of `fillers` in every order and number: the verdict is the label."""
    words = [words for length in range(5) for words in itertools.product(fillers.split(), repeat=length)]
    return [(" ".join([verdict, *others]), verdict) for others in words for verdict in ("good", "bad")]


def write(folder: Path, **parts: Sequence[Row]) -> Path:
    """A data set of one file a part."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, rows in parts.items():
        with (folder / f"{part}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("text", "label"), *rows])
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write(
        tmp_path / "data", train=reviews("film über"), validation=reviews("xyz über")[20:], test=reviews("xyz uvw")
    )


def config_of(model: Path, data: str | Path, output: Path, *settings: str, **flags: Any) -> FinetuneConfig:
    quick = {"epochs": 8, "learning_rates": (0.01,), "data.validation": 10, "data.labelled": 24, "device": "cpu"}
    given = {"model": str(model), "output": output, **data_fields(str(data))}
    return load_finetune_config(quick | given | flags, settings)


def logits_of(teacher: FrozenTeacher, *texts: str) -> torch.Tensor:
    return teacher.states(teacher.prepare({"text": text_bytes(*texts)}), [], with_logits=True)["logits"]


def body_of(model: Any) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in model.base_model.state_dict().items() if not name.startswith("pooler.")}


def changed(before: Any, after: Any) -> set[str]:
    old, new = body_of(before), body_of(after)
    assert old.keys() == new.keys()
    return {name for name, tensor in old.items() if not torch.equal(tensor, new[name])}


# What comes out


def test_the_head_learns_and_the_folder_is_a_normal_one(tmp_path: Path, data: Path, model_folder: ModelFolder) -> None:
    out, told = tmp_path / "deep" / "out", []
    result = finetune(config_of(model_folder("bert"), data, out), report=told.append)
    assert isinstance(result, Finetuned)
    assert (result.metric, result.labelled, result.validation) == ("accuracy", 24, 10)
    assert [epoch.epoch for epoch in told] == [*range(1, len(told) + 1)]
    assert result.best in told
    assert result.best.validation > 0.85 > told[0].train
    model = hf.AutoModelForSequenceClassification.from_pretrained(out).eval()
    assert (model.config.id2label, model.config.label2id) == ({0: "bad", 1: "good"}, {"bad": 0, "good": 1})
    teacher = load_teacher(out)
    assert (teacher.heads, teacher.labels) == (("sequence_classification",), ("bad", "good"))
    assert teacher.tokenizer_hash == load_teacher(model_folder("bert")).tokenizer_hash != ""
    texts = ["good film", "bad film film über", "bad", "good über"]
    rows = hf.AutoTokenizer.from_pretrained(out)(texts, padding=True, return_tensors="pt", return_token_type_ids=False)
    with torch.no_grad():
        expected = model(**rows).logits
    torch.testing.assert_close(logits_of(teacher, *texts), expected, atol=1e-6, rtol=1e-6)
    assert expected.argmax(-1).tolist() == [1, 0, 0, 1]
    assert [path.name for path in out.parent.iterdir()] == ["out"], "nothing is left beside the folder"


def test_the_record_says_what_was_done(tmp_path: Path, data: Path, model_folder: ModelFolder) -> None:
    out = tmp_path / "out"
    result = finetune(config_of(model_folder("bert"), data, out, seed=3))
    record = json.loads((out / "finetune.json").read_text())
    assert record["model_hash"] == load_teacher(out).model_hash
    source = load_teacher(model_folder("bert"))
    assert record["source"] == {"model": str(model_folder("bert")), "model_hash": source.model_hash}
    assert (record["task"], record["labels"]) == ("file", ["bad", "good"])
    assert record["rows"] == {"labelled": 24, "validation": 10}
    assert (record["metric"], record["best"]) == ("accuracy", asdict(result.best))
    assert record["epochs"] == [asdict(epoch) for epoch in result.epochs]
    assert (record["settings"]["seed"], record["settings"]["learning_rates"]) == (3, [0.01])
    assert str(tmp_path / "out") not in (out / "config.json").read_text()


def test_the_same_seed_gives_the_same_weights_and_moves_no_other_random_number(
    tmp_path: Path, data: Path, model_folder: ModelFolder
) -> None:
    before = torch.random.get_rng_state()
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        finetune(config_of(model_folder("bert"), data, tmp_path / name, epochs=2, seed=seed))
    assert torch.equal(torch.random.get_rng_state(), before)
    a, b, c = (load_teacher(tmp_path / name).model_hash for name in "abc")
    assert a == b != c


# What learns


def test_a_frozen_body_keeps_its_bits_and_a_trained_one_does_not(
    tmp_path: Path, data: Path, model_folder: ModelFolder
) -> None:
    source = load_teacher(model_folder("bert")).model
    for train in ("head", "body", "lora"):
        out = tmp_path / train
        finetune(config_of(model_folder("bert"), data, out, train=train, epochs=2, learning_rates=(1e-3,)))
        found = changed(source, hf.AutoModelForSequenceClassification.from_pretrained(out))
        if train == "head":
            assert not found
        elif train == "body":
            assert {"embeddings.word_embeddings.weight", "encoder.layer.0.attention.self.query.weight"} <= found
        else:
            dense = ("query.weight", "key.weight", "value.weight", "dense.weight")
            assert len(found) == 4 * 6
            assert all(name.endswith(dense) for name in found)


@pytest.mark.parametrize("model_type", ["vit", "efficientnet", "resnet"])
def test_an_image_teacher_learns_digits_under_a_frozen_body(
    tmp_path: Path, model_folder: ModelFolder, model_type: str
) -> None:
    out = tmp_path / "out"
    flags = {"data.labelled": 200, "data.unlabelled": 0, "data.validation": 100, "epochs": 15}
    flags |= {"learning_rates": (0.01, 0.1)}
    config = config_of(model_folder(model_type), "digits", out, **flags)
    result = finetune(config)
    assert result.best.validation > 0.3, "chance is a tenth"
    loaded = load_teacher(out)
    assert (loaded.heads, loaded.labels) == (("image_classification",), tuple("0123456789"))
    model = hf.AutoModelForImageClassification.from_pretrained(out)
    assert not changed(load_teacher(model_folder(model_type)).model, model)
    held = load_data(config.data).validation
    logits = loaded.states(loaded.prepare(teacher_view(held)), [], with_logits=True)["logits"]
    assert float((logits.argmax(-1) == held.labels).double().mean()) == pytest.approx(result.best.validation)
    images = held.teacher[:3].expand(-1, 3, -1, -1)
    pixels = hf.AutoImageProcessor.from_pretrained(out)(images, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(pixels, loaded.prepare({"image": images})["pixel_values"], atol=2e-2, rtol=0)


def test_the_image_size_asked_for_is_the_one_served(tmp_path: Path, model_folder: ModelFolder) -> None:
    out = tmp_path / "out"
    flags = {"data.labelled": 30, "data.validation": 20, "epochs": 1, "image_size": 24}
    finetune(config_of(model_folder("resnet"), "digits", out, **flags))
    image = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    assert load_teacher(out).prepare({"image": image})["pixel_values"].shape == (1, 3, 24, 24)


@pytest.mark.parametrize("train", ["head", "body", "lora"])
def test_a_rating_is_served_as_the_number_itself(tmp_path: Path, model_folder: ModelFolder, train: str) -> None:
    value = {"good": 80.5, "bad": 20.5}
    rated = [(text, f"{value[label] + len(text.split())}") for text, label in reviews("film über")]
    data = write(tmp_path / "data", train=rated)
    out = tmp_path / "out"
    rates = {"head": 0.03, "body": 3e-3, "lora": 0.03}
    result = finetune(
        config_of(model_folder("bert"), data, out, train=train, epochs=12, learning_rates=(rates[train],))
    )
    spread = math.sqrt(sum((float(target) - 50) ** 2 for _, target in rated) / len(rated))
    assert (result.metric, spread > 28) == ("rmse", True)
    assert result.best.validation < spread / 3
    config = hf.AutoConfig.from_pretrained(out)
    assert (config.problem_type, config.num_labels) == ("regression", 1)
    assert load_teacher(out).labels == (), "a rating has no classes"
    good, bad = logits_of(load_teacher(out), "good film über", "bad film über").squeeze(-1).tolist()
    assert (good, bad) == (pytest.approx(83.5, abs=15), pytest.approx(23.5, abs=15))


# Which rows


def test_the_test_rows_change_nothing(tmp_path: Path, data: Path, model_folder: ModelFolder) -> None:
    finetune(config_of(model_folder("bert"), data, tmp_path / "a"))
    others = write(tmp_path / "others", test=[(text, "bad") for text, _ in reviews("rst opq")])
    (others / "test.csv").rename(data / "test.csv")
    finetune(config_of(model_folder("bert"), data, tmp_path / "b"))
    a, b = (load_teacher(tmp_path / name).model_hash for name in "ab")
    assert a == b


def test_the_rows_are_the_labelled_ones_of_the_students(tmp_path: Path, model_folder: ModelFolder) -> None:
    """A row without a label has no say: the weights are those of a file in which such rows read otherwise."""
    path = write(tmp_path / "data", train=reviews("film über xyz uvw")) / "train.csv"
    flags = {"data.labelled": 20, "data.unlabelled": 60, "data.validation": 10, "epochs": 3}
    config = config_of(model_folder("bert"), path, tmp_path / "a", **flags)
    split = load_data(config.data).train
    assert (len(split), int(split.labelled.sum())) == (80, 20)
    finetune(config)
    silent = {text for text, known in zip(split.teacher, split.labelled.tolist(), strict=True) if not known}
    rows = reviews("film über xyz uvw")
    write(path.parent, train=[(f"{text} film" * 2 if text in silent else text, label) for text, label in rows])
    finetune(config_of(model_folder("bert"), path, tmp_path / "b", **flags))
    a, b = (load_teacher(tmp_path / name).model_hash for name in "ab")
    assert a == b


def test_a_long_text_is_cut_as_the_server_does(tmp_path: Path, data: Path, model_folder: ModelFolder) -> None:
    rows = [(" ".join([verdict, *["film"] * more]), verdict) for more in range(45, 75) for verdict in ("good", "bad")]
    write(data, train=rows)
    assert finetune(config_of(model_folder("bert"), data, tmp_path / "out")).best.validation > 0.5


# What is refused


def test_a_folder_that_holds_something_is_kept(tmp_path: Path, data: Path, model_folder: ModelFolder) -> None:
    out = tmp_path / "out"
    out.mkdir()
    config = config_of(model_folder("bert"), data, out, epochs=1)
    finetune(config)  # an empty folder is as good as none
    first = load_teacher(out).model_hash
    with pytest.raises(ConfigError, match="holds a fine-tuned model; give another folder, or --overwrite"):
        finetune(config)
    (out / "old").touch()
    finetune(config_of(model_folder("bert"), data, out, epochs=1, seed=5), overwrite=True)
    assert not (out / "old").exists()
    assert load_teacher(out).model_hash != first
    for other in (data, data / "train.csv"):
        before = sorted(data.iterdir())
        with pytest.raises(ConfigError, match="holds something else; give a folder that is new or empty"):
            finetune(config_of(model_folder("bert"), data, other), overwrite=True)
        assert sorted(data.iterdir()) == before
    with pytest.raises(ConfigError, match="nothing can be written beside"):
        finetune(config_of(model_folder("bert"), data, data / "train.csv" / "out"))


def test_an_ended_training_leaves_nothing(tmp_path: Path, data: Path, model_folder: ModelFolder) -> None:
    def interrupt(epoch: object) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "models" / "out"
    with pytest.raises(KeyboardInterrupt):
        finetune(config_of(model_folder("bert"), data, out), report=interrupt)
    with pytest.raises(NonFiniteError, match="lower the learning rate"):
        finetune(config_of(model_folder("bert"), data, out, train="body", learning_rates=(1e30,)))
    assert list(out.parent.iterdir()) == []


def test_models_that_cannot_get_a_head(tmp_path: Path, data: Path, model_folder: ModelFolder) -> None:
    out = tmp_path / "out"
    run = run_folder(tmp_path / "run", "text")
    for folder in (run, run / "student"):
        with pytest.raises(
            UnsupportedFamily, match=r"received a text_student.*has its head already: serve it as it is"
        ):
            finetune(config_of(folder, data, out))
    with pytest.raises(UnsupportedFamily, match="received a t5, expected a model that can get a new head"):
        finetune(config_of(model_folder("t5"), data, out))
    with pytest.raises(ModelLoadError, match="mpnet has no tokenizer, and the data is text"):
        finetune(config_of(model_folder("mpnet"), data, out))
    with pytest.raises(ConfigError, match="vit reads image, and file shows its teacher text; give another model"):
        finetune(config_of(model_folder("vit"), data, out))
    flags = {"data.labelled": 30, "data.validation": 20}
    with pytest.raises(ConfigError, match="bert reads text, and digits shows its teacher image"):
        finetune(config_of(model_folder("bert"), "digits", out, **flags))
    with pytest.raises(ConfigError, match="the blocks of a resnet have none"):
        finetune(config_of(model_folder("resnet"), "digits", out, train="lora", **flags))
    with pytest.raises(ModelLoadError, match="is no folder; give a Hugging Face model name or an existing folder"):
        finetune(config_of(tmp_path / "nowhere", data, out))
    assert not out.exists()


def test_rows_that_are_not_enough(tmp_path: Path, data: Path, model_folder: ModelFolder) -> None:
    model, out = model_folder("bert"), tmp_path / "out"
    with pytest.raises(DataError, match="9 validation rows, expected 10 or more: they choose epoch"):
        finetune(config_of(model, data, out, **{"data.validation": 9}))
    with pytest.raises(DataError, match="each of the 2 classes needs a labelled row"):
        finetune(config_of(model, data, out, **{"data.labelled": 1}))
    with pytest.raises(ConfigError, match=r"data.labelled: received 0, expected greater than or equal to 1"):
        config_of(model, data, out, **{"data.labelled": 0})
    with pytest.raises(DataError, match="there is no column 'verdict'"):
        finetune(config_of(model, data, out, **{"data.label_column": "verdict"}))


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("train=all", "train: received 'all', expected 'head', 'body' or 'lora'"),
        ("epochs=0", "epochs: received 0"),
        ("learning_rates=[0.1, -1.0]", "learning_rates.1: received -1.0"),
        ("learning_rates=[]", "learning_rates: received"),
        ("mood=good", "mood: received 'good', expected no field of this name"),
        ("data.mood=good", "data.mood: received 'good'"),
        ("training.lr=1", "training: received"),
        ("data=digits", "data: received 'digits', expected one of its fields"),
        ("seed", "--set: received 'seed', expected field=value"),
        ("seed=[", "--set seed: received '\\[', expected a YAML value"),
    ],
)
def test_settings_that_are_none(tmp_path: Path, setting: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        config_of(tmp_path, "digits", tmp_path, setting)


def test_settings_win_over_flags_and_none_is_not_given(tmp_path: Path) -> None:
    config = config_of(tmp_path, "digits", tmp_path, "data.labelled=7", "train=lora", epochs=None, seed=4)
    assert (config.data.name, config.data.labelled, config.train) == ("digits", 7, "lora")
    assert (config.epochs, config.seed) == (None, 4)
    with pytest.raises(
        ConfigError, match=r"--data: received 'nowhere', expected one of newsgroups.*a file or folder that exists"
    ):
        data_fields("nowhere")


def test_a_decoder_reads_its_last_token(tmp_path: Path) -> None:
    """The verdict stands last here: a head on any other token could not see it."""
    model, out = tmp_path / "llama", tmp_path / "out"
    tiny_model("llama").save_pretrained(model)
    tiny_tokenizer().save_pretrained(model)
    rows = [(" ".join(reversed(text.split())), label) for text, label in reviews("film über")]
    result = finetune(config_of(model, write(tmp_path / "data", train=rows), out, epochs=20))
    assert result.best.validation > 0.85
    teacher = load_teacher(out)
    assert type(teacher.model).__name__ == "LlamaForSequenceClassification"
    alone = [logits_of(teacher, text) for text in ("film film über good", "bad")]
    torch.testing.assert_close(logits_of(teacher, "film film über good", "bad"), torch.cat(alone), atol=1e-5, rtol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("train", ["head", "body", "lora"])
def test_it_learns_on_a_gpu(tmp_path: Path, data: Path, model_folder: ModelFolder, train: str) -> None:
    out = tmp_path / "out"
    result = finetune(config_of(model_folder("bert"), data, out, train=train, device="auto"))
    assert result.best.validation > 0.85
    assert logits_of(load_teacher(out, device="cpu"), "good film", "bad film").argmax(-1).tolist() == [1, 0]
