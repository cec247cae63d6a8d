"""Every metric against scikit-learn's, and its edges."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import accuracy_score, f1_score

from task_data.metrics import measured
from task_data.splits import METRICS, Task


@settings(deadline=None)
@given(arrays(np.int64, st.tuples(st.integers(1, 12), st.just(6)), elements=st.integers(0, 1)))
def test_several_labels_as_scikit_learn_has_them(drawn: np.ndarray) -> None:
    true, predicted = drawn[:, :3], drawn[:, 3:]
    found = measured("multi_label", torch.from_numpy(predicted) - 0.5, torch.from_numpy(true).float())
    assert next(iter(found)) == METRICS["multi_label"]
    assert found["subset_accuracy"] == pytest.approx(accuracy_score(true, predicted))
    if true.any() or predicted.any():
        assert found["micro_f1"] == pytest.approx(f1_score(true, predicted, average="micro"))
        there = [k for k in range(3) if true[:, k].any() or predicted[:, k].any()]
        assert found["macro_f1"] == pytest.approx(f1_score(true, predicted, average="macro", labels=there))
    else:
        assert found["micro_f1"] == found["macro_f1"] == 1.0


def test_one_label_and_a_number() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.0, 1.0, 0.0]])
    assert measured("single_label", logits, torch.tensor([0, 1, 0])) == pytest.approx(
        {"accuracy": 2 / 3, "macro_f1": 2 / 3}
    )
    assert measured("regression", torch.tensor([1.0, 3.0]), torch.tensor([1.0, 1.0])) == pytest.approx({"rmse": 2**0.5})


def test_a_task_without_labels_is_a_regression() -> None:
    assert Task("a", (), "multi_label").kind == Task("a").kind == "regression"
    assert [Task("a", ("x", "y")).metric, Task("a", ("x", "y"), "multi_label").metric] == ["accuracy", "micro_f1"]
