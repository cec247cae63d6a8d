"""A written configuration is read back as it was, and every line that is switched off tells the truth."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from command_config import field_rows
from command_config.writing import OFF, commented_yaml
from student_client.config import RunConfig, load_run_config
from teacher_server.config import ServerConfig, load_config

WORDS = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=20)
ADDRESSES = st.sampled_from(["127.0.0.1:50051", "[::1]:1", "a-b.c:65535", "dns:///teachers.lab:50051", "unix:/run/a b"])
CHOSEN = st.fixed_dictionaries(
    {},
    optional={
        "data.path": WORDS.map(Path),
        "data.classes": st.lists(WORDS, min_size=2, max_size=3, unique=True),
        "data.text_column": WORDS,
        "data.unlabelled": st.none() | st.integers(0, 9),
        "student.dropout": st.floats(0, 0.99),
        "method.names": st.lists(st.sampled_from(["talking", "pkd", "selection"]), min_size=1, max_size=3, unique=True),
        "method.pkd.weight": st.floats(0, 1e30),
        "method.selection.mix": st.lists(st.floats(0, 9), min_size=4, max_size=4),
        "teacher.address": ADDRESSES,
        "teacher.addresses": st.lists(ADDRESSES, max_size=2),
        "complementary": st.lists(st.fixed_dictionaries({"address": ADDRESSES, "tls": st.booleans()}), max_size=2),
        "training.max_steps": st.none() | st.integers(1, 10**9),
        "training.tracing": WORDS,
        "training.lr": st.floats(1e-30, 1.0),
        "output": WORDS.map(Path),
    },
)


@settings(deadline=None, max_examples=25)
@given(chosen=CHOSEN)
def test_a_run_is_read_back_as_it_was(chosen: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> None:
    config = load_run_config(None, chosen)
    file = tmp_path_factory.mktemp("written") / "run.yaml"
    file.write_text(commented_yaml(config, "A title.\nOf two lines."), encoding="utf-8")
    assert load_run_config(file, {}) == config


def test_a_server_is_read_back_as_it_was(tmp_path: Path) -> None:
    config = ServerConfig.model_validate({"model": "no", "permits": 7, "quotas": [{"students": "a*", "weight": 2}]})
    file = tmp_path / "teacher.yaml"
    file.write_text(commented_yaml(config, "A teacher."))
    assert load_config(file, {}) == config


def switched_on(text: str) -> str:
    """The file with every line that was off: `#field:` without its sign."""
    return re.sub(rf"^( *){OFF}(?=\w+:)", r"\1", text, flags=re.MULTILINE)


def test_lines_that_are_off_hold_the_defaults(tmp_path: Path) -> None:
    config = load_run_config(None, {"teacher.address": "there:1", "training.lr": 1e-5})
    text = commented_yaml(config, "A title.")
    file = tmp_path / "run.yaml"
    file.write_text(switched_on(text))
    assert load_run_config(file, {}) == config
    plain = yaml.safe_load(text)
    assert plain == {"teacher": {"address": "there:1"}, "training": {"lr": 1e-5}}
    assert yaml.safe_load(switched_on(text))["training"].keys() == type(config.training).model_fields.keys()


def test_every_field_has_its_own_sentence() -> None:
    """The comments are those of docs/configuration.md: one source, the descriptions of the fields."""
    config = load_run_config(None, {"teacher.address": "there:1"})
    text = commented_yaml(config, "")
    said = " ".join(line.strip().removeprefix("#").strip() for line in text.splitlines() if re.match(r" *# ", line))
    for row in field_rows(RunConfig, ""):
        assert " ".join(row.about.split()) in said, row.field
    assert max(map(len, text.splitlines())) <= 120


def test_sections_can_be_left_out() -> None:
    text = commented_yaml(load_run_config(None, {}), "", ["method.pkd"])
    assert "pkd:" not in text
    assert "rkd:" in text
