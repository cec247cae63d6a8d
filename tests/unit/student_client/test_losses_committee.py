"""The committee's error against the equations written out in float64."""

from __future__ import annotations

import math

import pytest
import torch

from student_client.losses import committee_error, mixed, mixed_prediction, mixed_targets
from teaching_protocol.errors import InvalidTensor

ROWS, TEACHERS, WIDTH = 5, 3, 7


@pytest.fixture
def values() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    pick = torch.Generator().manual_seed(3)
    states = torch.randn(ROWS, WIDTH, generator=pick, dtype=torch.float64)
    answers = 2 * torch.randn(ROWS, TEACHERS, WIDTH, generator=pick, dtype=torch.float64) + 1
    return states, answers, torch.randn(ROWS, TEACHERS, generator=pick, dtype=torch.float64).softmax(1)


def normal(vector: list[float]) -> list[float]:
    mean = sum(vector) / WIDTH
    scale = (sum((each - mean) ** 2 for each in vector) / WIDTH + 1e-5) ** 0.5
    return [(each - mean) / scale for each in vector]


def distance(one: list[float], other: list[float]) -> float:
    return sum((a - b) ** 2 for a, b in zip(normal(one), normal(other), strict=True)) / WIDTH


def test_to_each_answer_and_to_their_mixture(values: tuple[torch.Tensor, ...]) -> None:
    states, answers, importance = values
    u, z, alpha = states.tolist(), answers.tolist(), importance.tolist()
    each = sum(alpha[b][i] * distance(u[b], z[b][i]) for b in range(ROWS) for i in range(TEACHERS)) / ROWS
    mixture = [[sum(alpha[b][i] * z[b][i][f] for i in range(TEACHERS)) for f in range(WIDTH)] for b in range(ROWS)]
    of_mixture = sum(distance(u[b], mixture[b]) for b in range(ROWS)) / ROWS
    assert committee_error(states, answers, importance).item() == pytest.approx(each, rel=1e-12)
    assert committee_error(states, answers, importance, of_mixture=True).item() == pytest.approx(of_mixture, rel=1e-12)
    torch.testing.assert_close(mixed(answers, importance), torch.tensor(mixture, dtype=torch.float64))


@pytest.mark.parametrize("of_mixture", [False, True])
def test_an_answer_of_no_importance_has_no_effect(values: tuple[torch.Tensor, ...], of_mixture: bool) -> None:
    states, answers, importance = values
    importance = torch.where(torch.arange(TEACHERS) == 1, 0.0, importance)
    answers.requires_grad_()
    loss = committee_error(states, answers, importance, of_mixture=of_mixture)
    loss.backward()
    assert answers.grad is not None
    assert not answers.grad[:, 1].any()
    assert answers.grad[:, 0].abs().sum() > 0
    other = answers.detach().index_fill(1, torch.tensor(1), 0.0)
    assert torch.equal(committee_error(states, other, importance, of_mixture=of_mixture), loss.detach())


def test_gradients_reach_states_answers_and_importance(values: tuple[torch.Tensor, ...]) -> None:
    inputs = tuple(value.requires_grad_() for value in values)
    for of_mixture in (False, True):
        assert torch.autograd.gradcheck(lambda *given: committee_error(*given, of_mixture=of_mixture), inputs)  # noqa: B023


def test_shapes_that_do_not_fit(values: tuple[torch.Tensor, ...]) -> None:
    states, answers, importance = values
    for given in (
        (states[:2], answers, importance),
        (states[:, :3], answers, importance),
        (states[None], answers, importance),
        (states, answers, importance[:, :2]),
    ):
        with pytest.raises(InvalidTensor, match=r"expected \[batch, width\], \[batch, teachers, width\]"):
            committee_error(*given)


def test_the_mixture_of_predictions_is_the_mixture_of_probabilities() -> None:
    pick = torch.Generator().manual_seed(5)
    logits = torch.randn(ROWS, TEACHERS, 4, generator=pick, dtype=torch.float64).requires_grad_()
    importance = torch.randn(ROWS, TEACHERS, generator=pick, dtype=torch.float64).softmax(1)
    importance[0] = torch.tensor([0.0, 0.25, 0.75])  # a teacher that was not asked
    importance.requires_grad_()
    found = mixed_prediction(logits, importance, temperature=2.0)
    for b in range(ROWS):
        for c in range(4):
            expected = 0.0
            for i in range(TEACHERS):
                powers = [math.exp(value / 2.0) for value in logits[b, i].tolist()]
                expected += importance[b, i].item() * powers[c] / sum(powers)
            assert math.exp(found[b, c].item()) == pytest.approx(expected, rel=1e-9)
    found[:, 0].sum().backward()
    assert logits.grad is None, "teachers get no gradient"
    assert importance.grad is not None
    assert importance.grad.isfinite().all()
    assert importance.grad[1:].abs().sum() > 0


def test_a_committee_that_predicts_numbers_predicts_their_mean_by_importance() -> None:
    predictions = torch.tensor([[[1.0], [3.0]], [[2.0], [6.0]]])
    mixture = mixed_prediction(predictions, torch.tensor([[0.5, 0.5], [0.25, 0.75]]))
    assert mixture.tolist() == [2.0, 5.0]
    assert mixed_targets(torch.tensor([1.0, 5.0]), mixture).item() == pytest.approx(0.5)


def test_the_target_of_the_mixture_in_float64() -> None:
    pick = torch.Generator().manual_seed(6)
    outputs = torch.randn(ROWS, 4, generator=pick, dtype=torch.float64).requires_grad_()
    mixture = torch.randn(ROWS, 4, generator=pick, dtype=torch.float64).log_softmax(-1).requires_grad_()
    expected = 0.0
    for b in range(ROWS):
        powers = [math.exp(value / 3.0) for value in outputs[b].tolist()]
        for c in range(4):
            p = math.exp(mixture[b, c].item())
            expected += p * (math.log(p) - math.log(powers[c] / sum(powers)))
    loss = mixed_targets(outputs, mixture, temperature=3.0)
    assert loss.item() == pytest.approx(9.0 * expected / ROWS, rel=1e-9)
    loss.backward()
    assert outputs.grad is not None
    assert mixture.grad is None


def test_predictions_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InvalidTensor, match=r"expected \[batch, teachers, outputs\]"):
        mixed_prediction(torch.zeros(2, 3), torch.zeros(2, 3))
    with pytest.raises(InvalidTensor, match="the teachers must predict what the student does"):
        mixed_targets(torch.zeros(2, 3), torch.zeros(2, 4))
