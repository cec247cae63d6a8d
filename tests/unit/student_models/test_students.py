"""The students: cut, masks, seeds, what they learn from, and saving."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from student_client.config import StudentConfig
from student_client.students import build_student
from student_models import ImageStudent, RatingsStudent, States, TextStudent, load_student
from task_data.splits import Task, TaskData
from teaching_protocol.errors import ConfigError, DataError, InvalidTensor, ModelLoadError
from tests.unit.student_client.student_data import data_of, image_data, split_of, tiny, train

MODALITIES = ("text", "ratings", "image")


@pytest.mark.parametrize("modality", MODALITIES)
def test_a_student_is_head_of_upper_of_lower_at_one_width(modality: str) -> None:
    student, data = tiny(modality)
    student.eval()
    view = student.view(data.validation.columns)
    entry = student.lower(view)
    exit_ = student.upper(entry)
    for states in (entry, exit_):
        assert states.hidden.shape == (*states.mask.shape, student.width)
        assert states.mask.dtype == torch.bool
        assert len(states.mask) == len(data.validation)
    assert torch.equal(entry.mask, exit_.mask)
    assert torch.equal(student.head(exit_), student(view))
    assert student(view).shape == ((20,) if modality == "ratings" else (len(data.validation), data.task.outputs))


@pytest.mark.parametrize("modality", MODALITIES)
@pytest.mark.parametrize("size", ["tiny", "small", "complementary"])
def test_every_preset_builds_and_its_span_is_not_empty(modality: str, size: str) -> None:
    student, data = tiny(modality, size=size)
    view = student.view(data.test.columns)
    entry = student.eval().lower(view)
    assert not torch.equal(student.upper(entry).hidden, entry.hidden)
    assert student(view).isfinite().all()


@pytest.mark.parametrize("modality", MODALITIES)
def test_every_parameter_gets_a_gradient(modality: str) -> None:
    student, data = tiny(modality, dropout=0.0)
    student(student.view(data.train.columns)).square().sum().backward()
    for name, parameter in student.named_parameters():
        assert parameter.grad is not None, name


@pytest.mark.parametrize("modality", MODALITIES)
def test_the_seed_alone_decides_the_weights_and_the_global_random_state_stays(modality: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first, _ = tiny(modality, seed=3)
    first.save(tmp_path)
    load_student(tmp_path)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    again, other = tiny(modality, seed=3)[0], tiny(modality, seed=4)[0]
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in first.state_dict().items())
    assert any(not torch.equal(value, other.state_dict()[name]) for name, value in first.state_dict().items())


@pytest.mark.parametrize("modality", MODALITIES)
def test_a_saved_student_is_the_same_student_and_runs_alone(modality: str, tmp_path: Path) -> None:
    student, data = tiny(modality)
    train(student, data, steps=3)
    view = student.eval().view(data.test.columns)
    expected = student(view)
    student.save(tmp_path / "deep" / "folder")
    loaded = load_student(tmp_path / "deep" / "folder")
    again = loaded.view(data.test.columns)
    assert not loaded.training
    assert loaded.task == data.task
    assert all(torch.equal(again[name], view[name]) for name in view)
    assert torch.equal(loaded(again), expected)
    assert torch.equal(student(student.view(data.test.columns)), expected)  # saving changed nothing
    assert {path.suffix for path in (tmp_path / "deep" / "folder").iterdir()} == {".json", ".safetensors"}


@pytest.mark.parametrize("modality", MODALITIES)
def test_a_student_learns_its_training_rows(modality: str) -> None:
    student, data = tiny(modality, dropout=0.0)
    start = train(student, data, steps=1)
    assert train(student, data, steps=60) < 0.5 * start


@pytest.mark.parametrize("modality", MODALITIES)
def test_a_row_does_not_depend_on_its_neighbours(modality: str) -> None:
    student, data = tiny(modality)
    view = student.eval().view(data.test.columns)
    alone = {name: tensor[:1] for name, tensor in view.items()}
    torch.testing.assert_close(student(alone), student(view)[:1], rtol=1e-5, atol=1e-6)


# --- ratings -------------------------------------------------------------------------------------------------------


def test_unknown_ids_share_the_unknown_row() -> None:
    student, data = tiny("ratings")
    assert isinstance(student, RatingsStudent)
    known = torch.unique(data.train.columns["user"])
    raw = torch.cat([known, torch.tensor([-5, 11, 10_000])])
    items = data.train.columns["item"][:1].expand(len(raw))
    view = student.eval().view({"user": raw, "item": items})
    assert view["user"].tolist() == [*range(1, len(known) + 1), 0, 0, 0]
    outputs = student(view)
    torch.testing.assert_close(outputs[-3:], outputs[-1:].expand(3))  # a row's bits may depend on its place


def test_ratings_are_centred_on_the_training_mean() -> None:
    student, data = tiny("ratings")
    assert isinstance(student, RatingsStudent)
    assert student.output.centre.item() == pytest.approx(data.train.labels.mean().item())
    outputs = student.eval()(student.view(data.test.columns))
    assert (outputs - data.train.labels.mean()).abs().max() < 1.0


def test_training_trains_the_unknown_row_and_evaluation_does_not_draw() -> None:
    student, data = tiny("ratings", dropout=0.5)
    assert isinstance(student, RatingsStudent)
    before = student.user.weight[0].clone()
    train(student, data, steps=2)
    assert not torch.equal(student.user.weight[0], before)
    view = student.eval().view(data.test.columns)
    state = torch.get_rng_state()
    student(view)
    assert torch.equal(state, torch.get_rng_state())


# --- images --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("side", "channels", "tokens"), [(8, 1, 16), (28, 1, 49), (32, 3, 64), (5, 1, 9)])
def test_images_become_a_grid_of_tokens(side: int, channels: int, tokens: int) -> None:
    data = image_data(side, channels)
    student = build_student(StudentConfig(size="tiny"), data)
    entry = student.eval().lower(student.view(data.test.columns))
    assert entry.hidden.shape == (8, tokens, student.width)
    assert student.upper(entry).hidden.shape == entry.hidden.shape


def test_pixels_are_standardised_by_the_training_split() -> None:
    data = image_data(channels=2)
    student = build_student(StudentConfig(size="tiny"), data)
    assert isinstance(student, ImageStudent)
    pixels = data.train.columns["image"].double()
    torch.testing.assert_close(student.pixel_mean.flatten().double(), pixels.mean((0, 2, 3)), rtol=1e-6, atol=0)
    expected = pixels.std((0, 2, 3), unbiased=False)
    torch.testing.assert_close(student.pixel_std.flatten().double(), expected, rtol=1e-6, atol=0)


def test_the_upper_layers_refuse_states_that_are_no_grid() -> None:
    student, _ = tiny("image")
    with pytest.raises(InvalidTensor, match="4x4 tokens"):
        student.upper(States(torch.zeros(1, 3, student.width), torch.ones(1, 3, dtype=torch.bool)))


# --- bad input -----------------------------------------------------------------------------------------------------


def test_settings_that_cannot_be_are_refused() -> None:
    with pytest.raises(ConfigError, match="multiple of heads"):
        tiny("text", width=10, heads=4)
    with pytest.raises(ConfigError, match=r"student\.heads: received 2, but a student of ratings has none"):
        tiny("ratings", heads=2)
    with pytest.raises(ValidationError):
        StudentConfig(layers=0)
    with pytest.raises(ValidationError):
        StudentConfig.model_validate({"depth": 2})
    with pytest.raises(ConfigError, match="students exist for text, ratings, image"):
        build_student(StudentConfig(), TaskData(Task("t"), "sound", *[image_data().train] * 3))


def test_overrides_replace_the_presets_sizes() -> None:
    student, _ = tiny("text", width=24, layers=3, heads=3)
    assert isinstance(student, TextStudent)
    assert (student.width, student.body.config.num_hidden_layers, student.cut) == (24, 3, 1)


@pytest.mark.parametrize("modality", MODALITIES)
def test_data_without_the_students_columns_is_refused(modality: str) -> None:
    data = data_of(modality)
    empty = split_of({"other": torch.zeros(2)}, torch.zeros(2))
    with pytest.raises(DataError, match="missing, there are other"):
        build_student(StudentConfig(size="tiny"), TaskData(data.task, modality, empty, empty, empty))
    wrong = split_of(
        {name: torch.zeros(2) if modality == "text" else ["a"] for name in data.train.columns}, torch.zeros(2)
    )
    with pytest.raises(DataError, match="expected"):
        build_student(StudentConfig(size="tiny"), TaskData(data.task, modality, wrong, wrong, wrong))
    none = split_of({name: column[:0] for name, column in data.train.columns.items()}, torch.zeros(0))
    with pytest.raises(DataError, match="no rows"):
        build_student(StudentConfig(size="tiny"), TaskData(data.task, modality, none, none, none))


@pytest.mark.parametrize("modality", MODALITIES)
def test_a_broken_folder_is_refused_with_a_sentence(modality: str, tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"student\.json is missing"):
        load_student(tmp_path)
    student, _ = tiny(modality)
    student.save(tmp_path)
    for path in sorted(tmp_path.iterdir()):
        if path.name in ("config.json", "tokenizer_config.json"):
            continue  # for Hugging Face's readers alone
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(ModelLoadError, match=path.name):
            load_student(tmp_path)
        path.unlink()
        with pytest.raises(ModelLoadError, match=path.name):
            load_student(tmp_path)
        path.write_bytes(whole)
    card = json.loads((tmp_path / "student.json").read_text())
    card["sizes"]["width"] *= 2
    (tmp_path / "student.json").write_text(json.dumps(card))
    with pytest.raises(ModelLoadError, match="safetensors"):
        load_student(tmp_path)


def test_a_ratings_student_keeps_large_ids_exactly(tmp_path: Path) -> None:
    part = split_of({"user": torch.tensor([2**40, 3]), "item": torch.tensor([5, 2**50])}, torch.tensor([1.0, 5.0]))
    student = build_student(StudentConfig(size="tiny"), TaskData(Task("r"), "ratings", part, part, part))
    student.save(tmp_path)
    assert load_student(tmp_path).view(part.columns)["user"].tolist() == [2, 1]
    assert math.isfinite(student(student.view(part.columns)).sum().item())
