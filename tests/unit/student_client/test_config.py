from __future__ import annotations

from pathlib import Path

import pytest

from student_client.config import RunConfig, TeacherConfig, load_run_config
from teaching_protocol.errors import ConfigError


def test_the_defaults_make_a_run() -> None:
    config = load_run_config(None, {})
    assert config.method.names == ("talking",)
    assert config.teacher is None


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("run.yaml", "training: {lr: 1e-3, schedule: cosine}\nmethod: {names: [one_way]}\n"),
        ("run.toml", "training.lr = 1e-3\ntraining.schedule = 'cosine'\nmethod.names = ['one_way']\n"),
        ("run.json", '{"training": {"lr": 0.001, "schedule": "cosine"}, "method": {"names": ["one_way"]}}'),
    ],
)
def test_reads_a_file_and_lays_overrides_over_it(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    config = load_run_config(path, {"training.lr": "2e-3", "teacher.address": "there:1", "data.labelled": None})
    assert config.training.lr == 2e-3
    assert config.training.schedule == "cosine"
    assert config.method.names == ("one_way",)
    assert config.teacher == TeacherConfig(address="there:1")
    assert config.data.labelled is None


def test_an_empty_file_is_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("")
    assert load_run_config(path, {}) == RunConfig()


def test_method_names_may_be_one_string() -> None:
    assert load_run_config(None, {"method.names": "talking, one_way"}).method.names == ("talking", "one_way")


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("training.lr", -1.0, "training.lr: received -1.0, expected"),
        ("training.speed", 3, "training.speed: received 3, expected"),
        ("colour", "red", "colour: received 'red', expected"),
        ("training.mixed_precision", "fp8", "training.mixed_precision: received 'fp8', expected 'no'"),
        ("method.names", [], "method.names: received []"),
        ("data.name.inner", 1, "data.name is 'digits', expected a mapping"),
    ],
)
def test_says_field_received_and_expected(field: str, value: object, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_run_config(None, {"data.name": "digits", field: value})
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text"), [("a.yaml", "a: ["), ("a.toml", "a = "), ("a.yaml", "- 1\n"), ("b.yaml", None)]
)
def test_refuses_a_file_it_cannot_read(tmp_path: Path, name: str, text: str | None) -> None:
    path = tmp_path / name
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=name):
        load_run_config(path, {})


def test_a_written_config_reads_back_the_same(tmp_path: Path) -> None:
    config = load_run_config(None, {"training.lr": 0.1 + 0.2, "output": tmp_path, "teacher.entry": 2})
    path = tmp_path / "config.json"
    path.write_text(config.model_dump_json())
    assert load_run_config(path, {}) == config


def test_identity_leaves_out_what_a_resumed_run_may_change() -> None:
    config = load_run_config(None, {"teacher.address": "a:1"})
    moved = load_run_config(
        None, {"teacher.address": "b:2", "output": "elsewhere", "training.threads": 3, "teacher.student": "x"}
    )
    assert config.identity() == moved.identity()
    assert config.identity() != load_run_config(None, {"teacher.entry": 1}).identity()


def test_every_field_is_described() -> None:
    models = [RunConfig, *(type(value) for value in vars(RunConfig(teacher=TeacherConfig())).values())]
    for model in models:
        for name, field in getattr(model, "model_fields", {}).items():
            assert field.description, name
            assert field.description.endswith("."), name
