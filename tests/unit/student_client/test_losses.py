"""Every loss against a float64 reference written plainly, its gradients, its masks and its edges."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from student_client import losses
from student_client.losses import (
    CONSISTENCY_READINGS,
    answer_labels,
    batch_standardised,
    calibrated_cross_entropy,
    contrastive,
    interact,
    masked_cross_entropy,
    masked_mse,
    message_consistency,
    message_variance,
    soft_label_kl,
    state_consistency,
    state_error,
    task_loss,
)
from teaching_protocol.errors import InvalidSetting, InvalidTensor

BATCH, TOKENS, WIDTH, CLASSES = 4, 5, 6, 3
LENGTHS = (5, 3, 1, 4)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def leaf(*shape: int, seed: int = 0) -> torch.Tensor:
    return draw(*shape, seed=seed).requires_grad_()


def ragged() -> torch.Tensor:
    return torch.arange(TOKENS)[None, :] < torch.tensor(LENGTHS)[:, None]


def plain_layer_norm(row: np.ndarray) -> np.ndarray:
    return (row - row.mean()) / math.sqrt(row.var() + 1e-5)


def plain_state_error(a: torch.Tensor, b: torch.Tensor, mask: torch.Tensor, normalise: bool) -> float:
    total, count = 0.0, 0
    for row in range(len(a)):
        for token in range(a.shape[1]):
            if not mask[row, token]:
                continue
            x, y = a[row, token].detach().numpy(), b[row, token].detach().numpy()
            if normalise:
                x, y = plain_layer_norm(x), plain_layer_norm(y)
            total += sum((x[f] - y[f]) ** 2 for f in range(len(x))) / len(x)
            count += 1
    return total / count


def plain_pooled(a: torch.Tensor, mask: torch.Tensor) -> np.ndarray:
    return np.stack([a[row][mask[row]].detach().numpy().mean(0) for row in range(len(a))])


def plain_log_softmax(row: np.ndarray) -> np.ndarray:
    return row - math.log(sum(math.exp(value) for value in row))


# --- task losses ---------------------------------------------------------------------------------------------------


def test_masked_cross_entropy_equals_the_plain_mean_over_labelled_rows() -> None:
    logits, labels = leaf(BATCH, CLASSES), torch.tensor([2, -100, 0, 1])
    labelled = torch.tensor([True, False, True, True])
    rows = [-plain_log_softmax(logits[b].detach().numpy())[labels[b]] for b in (0, 2, 3)]
    assert masked_cross_entropy(logits, labels, labelled).item() == pytest.approx(sum(rows) / 3, abs=1e-12)
    assert torch.autograd.gradcheck(lambda y: masked_cross_entropy(y, labels, labelled), logits)


def test_calibrated_cross_entropy_is_the_smallest_over_all_temperatures() -> None:
    """Against a plain search over T; overconfidence costs nothing, knowing nothing costs log(classes) and no more."""
    logits, labels = draw(40, CLASSES, seed=3), torch.arange(40) % CLASSES
    logits[torch.arange(40), labels] += 1.0
    found = calibrated_cross_entropy(50.0 * logits, labels).item()

    def at(temperature: float) -> float:
        rows = [plain_log_softmax((logits[b] / temperature).numpy())[labels[b]] for b in range(40)]
        return -sum(rows) / 40

    assert found == pytest.approx(min(at(1.02**power) for power in range(-200, 200)), abs=2e-4)
    assert found == pytest.approx(calibrated_cross_entropy(logits, labels).item(), abs=2e-4)
    assert found < at(1 / 50)
    assert calibrated_cross_entropy(-logits, labels).item() == pytest.approx(math.log(CLASSES), abs=1e-12)


def test_masked_mse_equals_the_plain_mean_over_labelled_rows() -> None:
    predictions, targets = leaf(BATCH), draw(BATCH, seed=1)
    targets[1] = torch.nan
    labelled = torch.tensor([True, False, True, False])
    expected = sum((predictions[b].item() - targets[b].item()) ** 2 for b in (0, 2)) / 2
    assert masked_mse(predictions, targets, labelled).item() == pytest.approx(expected, abs=1e-12)
    assert torch.autograd.gradcheck(lambda y: masked_mse(y, targets, labelled), predictions)


@pytest.mark.parametrize("outputs", [leaf(BATCH, CLASSES), leaf(BATCH)], ids=["classes", "target"])
def test_no_labelled_row_costs_exactly_nothing_and_stays_connected(outputs: torch.Tensor) -> None:
    labels = torch.full((BATCH,), -1) if outputs.dim() == 2 else torch.full((BATCH,), torch.nan)
    loss = task_loss(outputs, labels, torch.zeros(BATCH, dtype=torch.bool))
    (gradient,) = torch.autograd.grad(loss, outputs)
    assert loss.item() == 0.0
    assert torch.equal(gradient, torch.zeros_like(outputs))


def test_task_loss_picks_by_the_outputs() -> None:
    labelled = torch.ones(BATCH, dtype=torch.bool)
    logits, classes, targets = draw(BATCH, CLASSES), torch.tensor([0, 1, 2, 0]), draw(BATCH, seed=1)
    assert torch.equal(task_loss(logits, classes, labelled), masked_cross_entropy(logits, classes, labelled))
    assert torch.equal(task_loss(targets * 2, targets, labelled), masked_mse(targets * 2, targets, labelled))


def test_an_unlabelled_row_gets_no_gradient() -> None:
    logits = leaf(BATCH, CLASSES)
    labelled = torch.tensor([True, False, True, False])
    masked_cross_entropy(logits, torch.zeros(BATCH, dtype=torch.int64), labelled).backward()
    assert logits.grad is not None
    assert torch.equal(logits.grad.abs().sum(1) > 0, labelled)


# --- states --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("loss", [state_error, interact, state_consistency])
def test_state_losses_equal_the_plain_masked_mean(loss: Callable[..., torch.Tensor], normalise: bool) -> None:
    a, b, mask = leaf(BATCH, TOKENS, WIDTH), leaf(BATCH, TOKENS, WIDTH, seed=1), ragged()
    expected = plain_state_error(a, b, mask, normalise)
    assert loss(a, b, mask, normalise=normalise).item() == pytest.approx(expected, abs=1e-12)
    assert torch.autograd.gradcheck(lambda x, y: loss(x, y, mask, normalise=normalise), (a, b))


def test_a_normalised_state_error_does_not_see_scale_and_shift() -> None:
    a, b = 10 * draw(BATCH, TOKENS, WIDTH), 10 * draw(BATCH, TOKENS, WIDTH, seed=1)
    assert interact(3 * a + 2, b).item() == pytest.approx(interact(a, b).item(), rel=1e-5)
    assert interact(a, a).item() == 0.0


def test_no_mask_means_every_token() -> None:
    a, b = draw(BATCH, TOKENS, WIDTH), draw(BATCH, TOKENS, WIDTH, seed=1)
    everything = torch.ones(BATCH, TOKENS, dtype=torch.bool)
    assert interact(a, b).item() == pytest.approx(interact(a, b, everything).item(), abs=1e-12)
    assert message_variance(a).item() == pytest.approx(message_variance(a, everything).item())


@pytest.mark.parametrize("value", [1e9, torch.inf, torch.nan])
@pytest.mark.parametrize("normalise", [True, False])
def test_padding_changes_neither_a_state_loss_nor_its_gradient(value: float, normalise: bool) -> None:
    mask, results = ragged(), []
    for filler in (0.0, value):
        a, b = (draw(BATCH, TOKENS, WIDTH, seed=s).masked_fill(~mask[..., None], filler) for s in (0, 1))
        a.requires_grad_()
        loss = interact(a, b, mask, normalise=normalise)
        results.append((loss, torch.autograd.grad(loss, a)[0]))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


def test_no_real_token_costs_nothing_and_stays_connected() -> None:
    a = leaf(2, 3, WIDTH)
    loss = interact(a, draw(2, 3, WIDTH, seed=1), torch.zeros(2, 3, dtype=torch.bool))
    (gradient,) = torch.autograd.grad(loss, a)
    assert loss.item() == 0.0
    assert not gradient.any()


def test_state_losses_refuse_what_does_not_fit() -> None:
    a = draw(BATCH, TOKENS, WIDTH)
    with pytest.raises(InvalidTensor, match="message_tokens"):
        interact(a, a[:, :2])
    with pytest.raises(InvalidTensor, match="mask"):
        interact(a, a, torch.ones(BATCH, TOKENS))
    with pytest.raises(InvalidTensor, match="mask"):
        interact(a, a, torch.ones(BATCH, 2, dtype=torch.bool))


# --- messages ------------------------------------------------------------------------------------------------------


def test_contrastive_equals_plain_symmetric_info_nce() -> None:
    a, b = leaf(BATCH, WIDTH), leaf(BATCH, WIDTH, seed=1)
    x, y = a.detach().numpy(), b.detach().numpy()
    scores = np.empty((BATCH, BATCH))
    for i in range(BATCH):
        for j in range(BATCH):
            scores[i, j] = x[i] @ y[j] / math.sqrt(x[i] @ x[i]) / math.sqrt(y[j] @ y[j]) / 0.2
    expected = 0.0
    for i in range(BATCH):
        expected -= plain_log_softmax(scores[i])[i] + plain_log_softmax(scores[:, i])[i]
    assert contrastive(a, b, temperature=0.2).item() == pytest.approx(expected / (2 * BATCH), abs=1e-12)
    assert torch.autograd.gradcheck(lambda p, q: contrastive(p, q, temperature=0.2), (a, b))


def test_batch_standardised_equals_the_plain_error_of_standardised_messages() -> None:
    a, b = leaf(BATCH, WIDTH), leaf(BATCH, WIDTH, seed=1)
    x, y = a.detach().numpy(), b.detach().numpy()
    expected = 0.0
    for f in range(WIDTH):
        p, q = ((z[:, f] - z[:, f].mean()) / z[:, f].std() for z in (x, y))
        expected += sum((p[i] - q[i]) ** 2 for i in range(BATCH)) / BATCH / WIDTH
    assert batch_standardised(a, b).item() == pytest.approx(expected, rel=1e-4)
    assert torch.autograd.gradcheck(batch_standardised, (a, b))


@pytest.mark.parametrize("reading", CONSISTENCY_READINGS)
def test_message_consistency_equals_its_reading(reading: str) -> None:
    a, b, mask = leaf(BATCH, TOKENS, WIDTH), leaf(BATCH, TOKENS, WIDTH, seed=1), ragged()
    other = mask.clone()
    other[0, 4] = False
    pools = [torch.from_numpy(plain_pooled(m, k)) for m, k in ((a, mask), (b, other))]
    plain = {"contrastive": contrastive, "batch_standardised": batch_standardised}
    expected = plain[reading](*pools).item() if reading in plain else plain_state_error(a, b, mask & other, True)
    loss = message_consistency((a, mask), (b, other), reading=reading)
    assert loss.item() == pytest.approx(expected, abs=1e-12)
    assert torch.autograd.gradcheck(lambda p, q: message_consistency((p, mask), (q, other), reading=reading), (a, b))


@pytest.mark.parametrize("reading", CONSISTENCY_READINGS)
def test_padding_changes_no_reading(reading: str) -> None:
    a, b, mask = draw(BATCH, TOKENS, WIDTH), draw(BATCH, TOKENS, WIDTH, seed=1), ragged()
    clean = message_consistency((a, mask), (b, mask), reading=reading)
    dirty = message_consistency((a.masked_fill(~mask[..., None], torch.nan), mask), (b, mask), reading=reading)
    wider = [(torch.cat([m, 7 * m], 1), torch.cat([mask, torch.zeros_like(mask)], 1)) for m in (a, b)]
    assert torch.equal(clean, dirty)
    assert message_consistency(*wider, reading=reading).item() == pytest.approx(clean.item(), abs=1e-12)


@pytest.mark.parametrize("reading", ["contrastive", "batch_standardised"])
def test_pooled_readings_take_messages_of_different_lengths(reading: str) -> None:
    a, b = (draw(BATCH, TOKENS, WIDTH), ragged()), (draw(BATCH, 2, WIDTH, seed=1), None)
    assert message_consistency(a, b, reading=reading).isfinite()


@pytest.mark.parametrize("reading", CONSISTENCY_READINGS)
@pytest.mark.parametrize("constant", [False, True])
def test_a_batch_of_one_and_a_constant_batch_give_finite_losses_and_gradients(reading: str, constant: bool) -> None:
    rows = 3 if constant else 1
    a = draw(1, 2, WIDTH).expand(rows, -1, -1).clone().requires_grad_()
    loss = message_consistency((a, None), (draw(rows, 2, WIDTH, seed=1), None), reading=reading)
    (gradient,) = torch.autograd.grad(loss, a)
    assert loss.isfinite()
    assert gradient.isfinite().all()
    if not constant and reading in ("contrastive", "batch_standardised"):
        assert loss.item() == 0.0


@pytest.mark.parametrize("reading", ["contrastive", "batch_standardised"])
def test_collapse_is_no_minimum_of_the_collapse_proof_readings(reading: str) -> None:
    a = draw(8, 1, WIDTH)
    constant = a[:1].expand(8, -1, -1)
    agreed = message_consistency((a, None), (a, None), reading=reading)
    assert message_consistency((constant, None), (constant, None), reading=reading) > agreed + 1
    assert message_consistency((constant, None), (constant, None), reading="layernorm_mse").item() == 0.0


def test_message_consistency_refuses_unknown_settings_and_shapes() -> None:
    a = (draw(BATCH, TOKENS, WIDTH), None)
    with pytest.raises(InvalidSetting, match="contrastive, batch_standardised, cross, layernorm_mse"):
        message_consistency(a, a, reading="cosine")
    with pytest.raises(InvalidSetting, match="temperature"):
        message_consistency(a, a, temperature=0.0)
    with pytest.raises(InvalidTensor, match="message_width"):
        message_consistency(a, (draw(BATCH, TOKENS, 2), None))
    with pytest.raises(InvalidTensor, match="message_tokens"):
        message_consistency(a, (draw(BATCH, 2, WIDTH), None), reading="layernorm_mse")
    masks = torch.ones(BATCH, TOKENS, dtype=torch.bool), torch.ones(BATCH, 2, dtype=torch.bool)
    with pytest.raises(InvalidTensor, match="masks"):
        message_consistency((a[0], masks[0]), (draw(BATCH, 2, WIDTH), masks[1]), reading="cross")


def test_message_variance_equals_the_plain_ratio() -> None:
    message, mask = draw(BATCH, TOKENS, WIDTH), ragged()
    spread = square = 0.0
    for token in range(TOKENS):
        rows = [message[b, token].numpy() for b in range(BATCH) if mask[b, token]]
        if len(rows) < 2:
            continue
        mean = sum(rows) / len(rows)
        spread += sum(((row - mean) ** 2).sum() for row in rows)
        square += sum((row**2).sum() for row in rows)
    assert message_variance(message, mask).item() == pytest.approx(spread / square, rel=1e-5)


def test_message_variance_sees_collapse_that_norms_miss() -> None:
    constant = draw(1, 3, WIDTH).expand(BATCH, -1, -1)
    assert message_variance(constant).item() == pytest.approx(0.0, abs=1e-10)
    assert message_variance(constant + 1e-2 * draw(BATCH, 3, WIDTH, seed=1)).item() < 0.05
    assert message_variance(draw(BATCH, 3, WIDTH)).item() > 0.3


@pytest.mark.parametrize("rows", [0, 1])
def test_message_variance_of_too_few_rows_raises_no_alarm(rows: int) -> None:
    assert message_variance(leaf(rows, 3, WIDTH)).item() == 1.0


def test_message_variance_is_a_metric_without_gradient_and_blind_to_padding() -> None:
    message, mask = leaf(BATCH, TOKENS, WIDTH), ragged()
    value = message_variance(message, mask)
    assert not value.requires_grad
    assert torch.equal(value, message_variance(message.masked_fill(~mask[..., None], torch.nan), mask))
    assert message_variance(torch.zeros(BATCH, 2, WIDTH)).item() == 0.0


# --- labels --------------------------------------------------------------------------------------------------------


def plain_kl(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> float:
    total = 0.0
    for row in range(len(student)):
        p = plain_log_softmax(teacher[row].detach().numpy() / temperature)
        q = plain_log_softmax(student[row].detach().numpy() / temperature)
        total += sum(math.exp(p[c]) * (p[c] - q[c]) for c in range(len(p)))
    return temperature**2 * total / len(student)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("loss", [soft_label_kl, answer_labels])
def test_label_losses_equal_the_plain_divergence(loss: Callable[..., torch.Tensor], temperature: float) -> None:
    student, teacher = leaf(BATCH, CLASSES), draw(BATCH, CLASSES, seed=1)
    value = loss(student, teacher, temperature=temperature).item()
    assert value == pytest.approx(plain_kl(student, teacher, temperature), abs=1e-12)
    assert torch.autograd.gradcheck(lambda y: loss(y, teacher, temperature=temperature), student)
    assert loss(teacher, teacher).item() == pytest.approx(0.0, abs=1e-12)


def test_answer_labels_of_a_regression_are_the_mean_squared_error() -> None:
    outputs, answers = leaf(BATCH), draw(BATCH, seed=1)
    expected = sum((outputs[b].item() - answers[b].item()) ** 2 for b in range(BATCH)) / BATCH
    assert answer_labels(outputs, answers).item() == pytest.approx(expected, abs=1e-12)
    assert torch.autograd.gradcheck(lambda y: answer_labels(y, answers), outputs)


@pytest.mark.parametrize("shape", [(BATCH, CLASSES), (BATCH,)])
def test_what_the_answer_says_gets_no_gradient(shape: tuple[int, ...]) -> None:
    outputs, answers = leaf(*shape), leaf(*shape, seed=1)
    answer_labels(outputs, answers).backward()
    assert outputs.grad is not None
    assert answers.grad is None


def test_label_losses_refuse_what_does_not_fit() -> None:
    with pytest.raises(InvalidTensor, match="same labels"):
        soft_label_kl(draw(2, 3), draw(2, 4))
    with pytest.raises(InvalidSetting, match="temperature"):
        answer_labels(draw(2, 3), draw(2, 3), temperature=-1.0)


def test_public_names_are_sorted_and_exist() -> None:
    assert list(losses.__all__) == sorted(losses.__all__, key=lambda name: (not name.isupper(), name))
    assert all(hasattr(losses, name) for name in losses.__all__)
