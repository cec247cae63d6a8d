"""The committee's error against the equations written out in float64."""

from __future__ import annotations

import pytest
import torch

from student_client.losses import committee_error, mixed
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
