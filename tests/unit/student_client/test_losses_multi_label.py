"""Losses of independent classes against plain references, their gradients and their edges."""

from __future__ import annotations

import math

import pytest
import torch

from student_client.losses import (
    answer_labels,
    averaged_soft_targets,
    masked_binary_cross_entropy,
    mixed_prediction,
    mixed_targets,
    soft_targets,
    task_loss,
)
from tests.unit.student_client.test_losses import BATCH, CLASSES, draw, leaf

LABELLED = torch.tensor([True, False, True, True])


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def binary_kl(p: float, q: float) -> float:
    return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))


def plain(logits: torch.Tensor, targets: torch.Tensor, temperature: float) -> float:
    """T^2 times the mean over rows and classes of KL(Bernoulli(targets) || Bernoulli(sigmoid(logits / T)))."""
    pairs = zip(targets.flatten().tolist(), logits.flatten().tolist(), strict=True)
    found = [binary_kl(p, sigmoid(y / temperature)) for p, y in pairs]
    return temperature**2 * sum(found) / len(found)


def test_binary_cross_entropy_is_the_mean_over_classes_and_labelled_rows() -> None:
    logits, targets = leaf(BATCH, CLASSES), (draw(BATCH, CLASSES, seed=1) > 0).float()
    targets[1] = torch.nan
    rows = [
        -sum(math.log(sigmoid(y if t else -y)) for y, t in zip(logits[b].tolist(), targets[b].tolist(), strict=True))
        for b in (0, 2, 3)
    ]
    found = masked_binary_cross_entropy(logits, targets, LABELLED)
    assert found.item() == pytest.approx(sum(rows) / (3 * CLASSES), abs=1e-12)
    assert torch.equal(found, task_loss(logits, targets, LABELLED))
    assert torch.autograd.gradcheck(lambda y: masked_binary_cross_entropy(y, targets, LABELLED), logits)


def test_no_labelled_row_costs_exactly_nothing_and_stays_connected() -> None:
    logits = leaf(BATCH, CLASSES)
    loss = task_loss(logits, torch.full((BATCH, CLASSES), torch.nan), torch.zeros(BATCH, dtype=torch.bool))
    (gradient,) = torch.autograd.grad(loss, logits)
    assert (loss.item(), gradient.abs().max().item()) == (0.0, 0.0)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_soft_targets_compare_sigmoids_class_by_class(temperature: float) -> None:
    logits, teacher = leaf(BATCH, CLASSES), draw(BATCH, CLASSES, seed=1)
    expected = plain(logits, (teacher / temperature).sigmoid(), temperature)
    for loss in (soft_targets, answer_labels):
        found = loss(logits, teacher, temperature=temperature, independent=True)
        assert found.item() == pytest.approx(expected, abs=1e-12)
    several = averaged_soft_targets(logits, [teacher], temperature=temperature, independent=True)
    assert several.item() == pytest.approx(expected, abs=1e-12)
    assert torch.autograd.gradcheck(lambda y: soft_targets(y, teacher, independent=True), logits)
    assert soft_targets(teacher, teacher, independent=True).item() == pytest.approx(0.0, abs=1e-12)


def test_averages_and_mixtures_are_those_of_probabilities() -> None:
    logits, teachers = draw(BATCH, CLASSES), [draw(BATCH, CLASSES, seed=seed) for seed in (1, 2)]
    mean = sum(((each / 2.0).sigmoid() for each in teachers), torch.zeros(())) / 2
    assert averaged_soft_targets(logits, teachers, independent=True).item() == pytest.approx(plain(logits, mean, 2.0))
    share = torch.tensor([[0.25, 0.75]] * BATCH, dtype=torch.float64)
    mixture = mixed_prediction(torch.stack(teachers, dim=1), share, temperature=2.0, independent=True)
    wanted = 0.25 * (teachers[0] / 2.0).sigmoid() + 0.75 * (teachers[1] / 2.0).sigmoid()
    torch.testing.assert_close(mixture.sigmoid(), wanted)
    found = mixed_targets(logits, mixture, temperature=2.0, independent=True)
    assert found.item() == pytest.approx(plain(logits, wanted, 2.0))


def test_a_mixture_moves_the_importance() -> None:
    predictions, scores = draw(BATCH, 2, CLASSES), leaf(BATCH, 2, seed=1)
    targets = (draw(BATCH, CLASSES, seed=3) > 0).double()

    def loss(given: torch.Tensor) -> torch.Tensor:
        return task_loss(mixed_prediction(predictions, given.softmax(-1), independent=True), targets, LABELLED)

    assert torch.autograd.gradcheck(loss, scores)
    assert torch.autograd.grad(loss(scores), scores)[0].abs().max() > 0


def test_large_logits_stay_finite() -> None:
    far = torch.tensor([[1e4, -1e4]], requires_grad=True)
    share = torch.ones(1, 1)
    for found in (
        soft_targets(far, -far, independent=True),
        mixed_targets(far, mixed_prediction(-far[:, None], share, independent=True), independent=True),
    ):
        assert found.isfinite()
        assert torch.autograd.grad(found, far, retain_graph=True)[0].isfinite().all()
