"""What a served teacher scores by itself, and its control with random weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, BertConfig

from student_client.compare.scores import score_teacher
from student_client.compare.weights import randomise
from student_client.training.evaluate import evaluate_run
from student_client.training.runs import train
from teacher_server.app import TeacherApp
from teacher_server.config import ServerConfig
from teaching_protocol.errors import ConfigError
from tests.unit.student_client.run_setup import quiet, run_config


def serve(folder: Path) -> TeacherApp:
    return TeacherApp(ServerConfig(model=str(folder), device="cpu", port=0, metrics_port=-1))


def test_a_served_student_scores_as_it_does_alone(tmp_path: Path) -> None:
    config = run_config(tmp_path)
    train(config, progress=quiet())
    with serve(config.output) as server:
        found = score_teacher(f"127.0.0.1:{server.port}", config.data)
    assert found["metric"] == "accuracy"
    for split in ("validation", "test"):
        assert found[split] == pytest.approx(evaluate_run(config.output, split).value)  # type: ignore[arg-type]


def test_a_teacher_of_other_labels_has_no_score(tmp_path: Path) -> None:
    config = run_config(tmp_path)
    train(config, progress=quiet())
    other = tmp_path / "other.csv"
    other.write_text((tmp_path / "mood.csv").read_text().replace(",yes", ",ja").replace(",no", ",nein"))
    with serve(config.output) as server:
        found = score_teacher(f"127.0.0.1:{server.port}", config.data.model_copy(update={"path": other}))
    assert found == {"metric": "accuracy", "validation": None, "test": None}


def test_random_weights_keep_shape_and_tokenizer_and_nothing_else(tmp_path: Path) -> None:
    source, output = tmp_path / "source", tmp_path / "blank"
    config = BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    config.id2label = {0: "no", 1: "yes"}
    AutoModelForSequenceClassification.from_config(config).save_pretrained(source)
    (source / "tokenizer.json").write_text("{}")
    before = torch.get_rng_state()
    randomise(source, None, 3, output)
    assert torch.equal(before, torch.get_rng_state())
    known, drawn = load_file(source / "model.safetensors"), load_file(output / "model.safetensors")
    assert {name: tensor.shape for name, tensor in known.items()} == {
        name: tensor.shape for name, tensor in drawn.items()
    }
    weights = [name for name, tensor in known.items() if name.endswith("weight") and "LayerNorm" not in name]
    assert len(weights) > 10
    assert not any(torch.equal(known[name], drawn[name]) for name in weights)
    assert (output / "tokenizer.json").read_text() == "{}"
    assert json.loads((output / "config.json").read_text())["id2label"] == {"0": "no", "1": "yes"}
    again = tmp_path / "again"
    randomise(source, None, 3, again)
    assert all(torch.equal(tensor, drawn[name]) for name, tensor in load_file(again / "model.safetensors").items())


def test_a_student_with_random_weights_can_be_served(tmp_path: Path) -> None:
    config = run_config(tmp_path)
    randomise(None, config.model_dump(mode="json"), 3, tmp_path / "blank")
    with serve(tmp_path / "blank") as server:
        found = score_teacher(f"127.0.0.1:{server.port}", config.data)
    assert isinstance(found["test"], float)


@pytest.mark.parametrize("config", [None, "{}", '{"model_type": "bert", "architectures": ["NoSuchModel"]}'])
def test_what_has_no_architecture_is_refused(tmp_path: Path, config: str | None) -> None:
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(ConfigError, match="no random-weight control can be made from"):
        randomise(tmp_path, None, 3, tmp_path / "blank")
