from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score

from student_client.training.evaluate import Scores, evaluate, evaluate_run
from student_client.training.runs import train
from teaching_protocol.errors import ConfigError, DataError, ModelLoadError
from tests.unit.student_client.run_setup import quiet, run_config
from tests.unit.student_client.student_data import tiny


@pytest.mark.parametrize("modality", ["text", "image"])
def test_classes_are_scored_as_scikit_learn_scores_them(modality: str) -> None:
    student, data = tiny(modality)
    view = student.view(data.train.columns)
    student.eval()
    with torch.no_grad():
        logits = student(view).double()
    scores = evaluate(student, view, data.train, batch_size=7)
    predicted, labels = logits.argmax(-1).numpy(), data.train.labels.numpy()
    assert scores.metric == "accuracy"
    assert scores.value == pytest.approx(accuracy_score(labels, predicted))
    assert scores.macro_f1 == pytest.approx(f1_score(labels, predicted, average="macro", zero_division=0))
    expected = torch.nn.functional.cross_entropy(logits, data.train.labels).item()
    assert scores.loss == pytest.approx(expected, abs=1e-6)
    assert scores.rows == len(data.train)


def test_a_regression_is_scored_by_rmse() -> None:
    student, data = tiny("ratings")
    view = student.view(data.test.columns)
    student.eval()
    with torch.no_grad():
        error = student(view).double() - data.test.labels.double()
    scores = evaluate(student, view, data.test)
    assert scores.metric == "rmse"
    assert scores.value == pytest.approx(math.sqrt(error.square().mean().item()), abs=1e-6)
    assert scores.loss == pytest.approx(scores.value**2)
    assert scores.macro_f1 is None


@pytest.mark.parametrize("training", [True, False])
def test_restores_the_mode_and_leaves_no_gradient_and_no_random_number(training: bool) -> None:
    student, data = tiny("text")
    student.train(training)
    before = torch.get_rng_state()
    evaluate(student, student.view(data.test.columns), data.test)
    assert student.training is training
    assert torch.equal(torch.get_rng_state(), before)
    assert all(parameter.grad is None for parameter in student.parameters())


def test_unlabelled_rows_are_left_out() -> None:
    student, data = tiny("text")
    half = torch.arange(len(data.train)) < 10
    split = replace(data.train, labelled=half, labels=data.train.labels.masked_fill(~half, -1))
    assert evaluate(student, student.view(split.columns), split).rows == 10
    with pytest.raises(DataError, match="has a label"):
        evaluate(student, student.view(split.columns), replace(split, labelled=torch.zeros_like(half)))


def test_accuracy_rises_and_rmse_falls() -> None:
    assert Scores("accuracy", 0.9, 0.0, 1).better_than(0.8)
    assert not Scores("accuracy", 0.8, 0.0, 1).better_than(0.8)
    assert Scores("rmse", 0.8, 0.0, 1).better_than(0.9)
    assert Scores("rmse", 9.0, 0.0, 1).better_than(None)


def test_a_run_is_scored_by_its_student_alone(tmp_path: Path) -> None:
    config = run_config(tmp_path)
    result = train(config, progress=quiet())
    assert result is not None
    scores = evaluate_run(config.output)
    assert (scores.value, scores.loss) == (result.test, result.test_loss)
    assert evaluate_run(config.output, "validation").value == result.validation


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config\.json"):
        evaluate_run(tmp_path)
    (tmp_path / "config.json").write_text(run_config(tmp_path).model_dump_json())
    with pytest.raises(ModelLoadError):
        evaluate_run(tmp_path)
