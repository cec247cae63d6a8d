"""Losses on feature vectors and on teachers' predictions, against float64 references written plainly."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from student_client.losses import averaged_soft_targets, hint_error, patient_error, soft_label_kl, soft_targets
from teaching_protocol.errors import InvalidSetting, InvalidTensor

BATCH, WIDTH, CLASSES = 4, 6, 3


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def leaf(*shape: int, seed: int = 0) -> torch.Tensor:
    return draw(*shape, seed=seed).requires_grad_()


def rows_of(tensor: torch.Tensor) -> list[np.ndarray]:
    return list(tensor.detach().numpy())


def plain_softmax(row: np.ndarray, temperature: float) -> list[float]:
    powers = [math.exp(value / temperature) for value in row]
    return [power / sum(powers) for power in powers]


# --- hints ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("normalise", [True, False])
def test_hint_error_equals_the_plain_mean(normalise: bool) -> None:
    student, teacher = leaf(BATCH, WIDTH), draw(BATCH, WIDTH, seed=1)
    total = 0.0
    for x, y in zip(rows_of(student), rows_of(teacher), strict=True):
        if normalise:
            x, y = ((z - z.mean()) / math.sqrt(z.var() + 1e-5) for z in (x, y))
        for f in range(WIDTH):
            total += (x[f] - y[f]) ** 2
    found = hint_error(student, teacher, normalise=normalise)
    assert found.item() == pytest.approx(total / BATCH / WIDTH, abs=1e-12)
    assert torch.autograd.gradcheck(lambda x: hint_error(x, teacher, normalise=normalise), student)


def test_a_normalised_hint_does_not_see_the_teachers_scale() -> None:
    student, teacher = 10 * draw(BATCH, WIDTH), 10 * draw(BATCH, WIDTH, seed=1)
    assert hint_error(student, 3 * teacher + 2).item() == pytest.approx(hint_error(student, teacher).item(), rel=1e-5)
    raw = [hint_error(student, scale * teacher, normalise=False).item() for scale in (1, 3)]
    assert raw[1] > 2 * raw[0]


@pytest.mark.parametrize("normalise", [True, False])
def test_a_row_without_tokens_and_a_batch_of_one_stay_finite(normalise: bool) -> None:
    for rows in (1, 3):
        student = torch.zeros(rows, WIDTH, dtype=torch.float64, requires_grad=True)
        loss = hint_error(student, draw(rows, WIDTH), normalise=normalise)
        (gradient,) = torch.autograd.grad(loss, student)
        assert loss.isfinite()
        assert gradient.isfinite().all()


# --- patience ------------------------------------------------------------------------------------------------------


def test_patient_error_equals_the_plain_mean_over_layers_of_different_widths() -> None:
    students = [leaf(BATCH, WIDTH), leaf(BATCH, 2, seed=1)]
    teachers = [draw(BATCH, WIDTH, seed=2), draw(BATCH, 2, seed=3)]
    total = 0.0
    for student, teacher in zip(students, teachers, strict=True):
        for x, y in zip(rows_of(student), rows_of(teacher), strict=True):
            lengths = [math.sqrt(sum(value * value for value in z)) for z in (x, y)]
            total += sum((x[f] / lengths[0] - y[f] / lengths[1]) ** 2 for f in range(len(x)))
    assert patient_error(students, teachers).item() == pytest.approx(total / BATCH / 2, abs=1e-12)
    assert torch.autograd.gradcheck(lambda *ours: patient_error(ours, teachers), students)


def test_patient_error_sees_directions_and_nothing_else() -> None:
    student = draw(BATCH, WIDTH)
    assert patient_error([student], [5 * student]).item() == pytest.approx(0.0, abs=1e-12)
    assert patient_error([student], [-student]).item() == pytest.approx(4.0)


def test_patient_error_of_a_vector_of_zeros_is_finite() -> None:
    student = torch.zeros(2, WIDTH, requires_grad=True)
    loss = patient_error([student], [draw(2, WIDTH).float()])
    (gradient,) = torch.autograd.grad(loss, student)
    assert loss.item() == pytest.approx(1.0)
    assert gradient.isfinite().all()


# --- predictions ---------------------------------------------------------------------------------------------------


def test_soft_targets_of_classes_are_the_divergence_and_of_a_regression_the_squared_error() -> None:
    logits, teacher = draw(BATCH, CLASSES), draw(BATCH, CLASSES, seed=1)
    assert torch.equal(soft_targets(logits, teacher, temperature=3.0), soft_label_kl(logits, teacher, temperature=3.0))
    outputs, prediction = leaf(BATCH), draw(BATCH, 1, seed=1)
    expected = sum((outputs[b].item() - prediction[b, 0].item()) ** 2 for b in range(BATCH)) / BATCH
    assert soft_targets(outputs, prediction).item() == pytest.approx(expected, abs=1e-12)
    assert soft_targets(outputs, prediction[:, 0]).item() == pytest.approx(expected, abs=1e-12)
    assert torch.autograd.gradcheck(lambda y: soft_targets(y, prediction), outputs)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_averaged_soft_targets_equal_the_plain_divergence_from_the_mean_of_probabilities(temperature: float) -> None:
    student, teachers = leaf(BATCH, CLASSES), [3 * draw(BATCH, CLASSES, seed=seed) for seed in (1, 2, 3)]
    total = 0.0
    for b in range(BATCH):
        each = [plain_softmax(teacher[b].numpy(), temperature) for teacher in teachers]
        target = [sum(probabilities[c] for probabilities in each) / len(each) for c in range(CLASSES)]
        ours = plain_softmax(student[b].detach().numpy(), temperature)
        total += sum(p * (math.log(p) - math.log(q)) for p, q in zip(target, ours, strict=True))
    found = averaged_soft_targets(student, teachers, temperature=temperature)
    assert found.item() == pytest.approx(temperature**2 * total / BATCH, abs=1e-12)
    assert torch.autograd.gradcheck(lambda y: averaged_soft_targets(y, teachers, temperature=temperature), student)
    alone = averaged_soft_targets(student, teachers[:1], temperature=temperature)
    assert alone.item() == pytest.approx(soft_label_kl(student, teachers[0], temperature=temperature).item())


def test_averaged_soft_targets_of_a_regression_are_the_error_to_the_mean_prediction() -> None:
    outputs, teachers = leaf(BATCH), [draw(BATCH, 1, seed=1), draw(BATCH, 1, seed=2)]
    expected = 0.0
    for b in range(BATCH):
        expected += (outputs[b].item() - (teachers[0][b, 0].item() + teachers[1][b, 0].item()) / 2) ** 2 / BATCH
    assert averaged_soft_targets(outputs, teachers).item() == pytest.approx(expected, abs=1e-12)
    assert torch.autograd.gradcheck(lambda y: averaged_soft_targets(y, teachers), outputs)


def test_probabilities_that_vanish_stay_finite() -> None:
    student = torch.tensor([[200.0, -200.0, 0.0]], requires_grad=True)
    loss = averaged_soft_targets(student, [torch.tensor([[-300.0, 300.0, 0.0]])] * 2, temperature=1.0)
    (gradient,) = torch.autograd.grad(loss, student)
    assert loss.item() == pytest.approx(400.0)
    assert gradient.isfinite().all()


# --- what all share ------------------------------------------------------------------------------------------------


def test_the_teachers_side_gets_no_gradient() -> None:
    for student, call in (
        (leaf(BATCH, WIDTH), lambda s, t: hint_error(s, t)),
        (leaf(BATCH, WIDTH), lambda s, t: patient_error([s], [t])),
        (leaf(BATCH, WIDTH), lambda s, t: soft_targets(s, t)),
        (leaf(BATCH, WIDTH), lambda s, t: averaged_soft_targets(s, [t, t])),
        (leaf(BATCH), lambda s, t: soft_targets(s, t[:, 0])),
        (leaf(BATCH), lambda s, t: averaged_soft_targets(s, [t[:, :1]])),
    ):
        teacher = leaf(BATCH, WIDTH, seed=1)
        call(student, teacher).backward()
        assert student.grad is not None
        assert student.grad.abs().sum() > 0
        assert teacher.grad is None


def test_what_does_not_fit_is_refused() -> None:
    features = draw(BATCH, WIDTH)
    for wrong in (draw(BATCH, 2), draw(2, WIDTH), draw(BATCH, 1, WIDTH)):
        with pytest.raises(InvalidTensor, match=r"\[batch, width\]"):
            hint_error(features, wrong)
        with pytest.raises(InvalidTensor, match=r"\[batch, width\]"):
            patient_error([features], [wrong])
    for students, teachers in (([], []), ([features], []), ([features], [features, features])):
        with pytest.raises(InvalidTensor, match="layers"):
            patient_error(students, teachers)
    for outputs, wrong in ((draw(BATCH, 3), draw(BATCH, 4)), (draw(BATCH), draw(BATCH, 2)), (draw(BATCH), draw(2, 1))):
        with pytest.raises(InvalidTensor, match="same labels"):
            soft_targets(outputs, wrong)
        with pytest.raises(InvalidTensor, match="same labels"):
            averaged_soft_targets(outputs, [wrong])
    with pytest.raises(InvalidTensor, match="received none"):
        averaged_soft_targets(draw(BATCH, 3), [])
    for loss in (soft_targets, lambda y, t, **cold: averaged_soft_targets(y, [t], **cold)):
        with pytest.raises(InvalidSetting, match="temperature"):
            loss(draw(BATCH, 3), draw(BATCH, 3), temperature=0.0)
