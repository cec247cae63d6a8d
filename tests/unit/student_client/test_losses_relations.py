"""Losses on relations against float64 references written plainly, their masks and their edges."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import permutations

import numpy as np
import pytest
import torch

from student_client.losses import angle_relation, distance_relation, self_relation_kl
from teaching_protocol.errors import InvalidSetting, InvalidTensor

BATCH, TOKENS, OURS, THEIRS = 5, 4, 6, 8
LENGTHS = (4, 3, 1, 4, 2)
ROW_LOSSES = (distance_relation, angle_relation)

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def leaf(*shape: int, seed: int = 0) -> torch.Tensor:
    return draw(*shape, seed=seed).requires_grad_()


def ragged() -> torch.Tensor:
    return torch.arange(TOKENS)[None, :] < torch.tensor(LENGTHS)[:, None]


def huber(error: float) -> float:
    return error * error / 2 if abs(error) <= 1 else abs(error) - 0.5


def plain_distances(rows: np.ndarray) -> dict[tuple[int, int], float]:
    found = {(i, j): math.sqrt(((rows[i] - rows[j]) ** 2).sum()) for i, j in permutations(range(len(rows)), 2)}
    mean = sum(found.values()) / len(found)
    return {pair: value / mean for pair, value in found.items()}


def plain_cosine(rows: np.ndarray, i: int, j: int, k: int) -> float:
    a, b = rows[i] - rows[j], rows[k] - rows[j]
    lengths = math.sqrt(a @ a) * math.sqrt(b @ b)
    return float(a @ b / lengths) if lengths else 0.0


def test_distance_relation_equals_the_plain_huber_error_of_pairs() -> None:
    student, teacher = leaf(BATCH, OURS), draw(BATCH, THEIRS, seed=1)
    teacher[0] *= 20  # far away, so that the linear side of Huber is met, too
    ours, theirs = plain_distances(student.detach().numpy()), plain_distances(teacher.numpy())
    errors = [ours[pair] - theirs[pair] for pair in ours]
    assert max(map(abs, errors)) > 1 > min(map(abs, errors))
    expected = sum(map(huber, errors)) / len(errors)
    assert distance_relation(student, teacher).item() == pytest.approx(expected, abs=1e-12)
    assert torch.autograd.gradcheck(lambda x: distance_relation(x, teacher), student)


def test_angle_relation_equals_the_plain_huber_error_of_triples() -> None:
    student, teacher = leaf(BATCH, OURS), draw(BATCH, THEIRS, seed=1)
    x, y = student.detach().numpy(), teacher.numpy()
    triples = list(permutations(range(BATCH), 3))
    expected = sum(huber(plain_cosine(x, *each) - plain_cosine(y, *each)) for each in triples) / len(triples)
    assert angle_relation(student, teacher).item() == pytest.approx(expected, abs=1e-12)
    assert torch.autograd.gradcheck(lambda x: angle_relation(x, teacher), student)


def test_row_relations_of_identical_rows_equal_the_plain_errors() -> None:
    """A row that is there twice has no direction to itself: its cosines are 0, on the one side or on the other."""
    rows, others = draw(BATCH, OURS), draw(BATCH, THEIRS, seed=1)
    rows[1] = rows[0]
    triples, pairs = list(permutations(range(BATCH), 3)), list(permutations(range(BATCH), 2))
    for student, teacher in ((rows, others), (others, rows)):
        x, y = student.numpy(), teacher.numpy()
        angles = sum(huber(plain_cosine(x, *each) - plain_cosine(y, *each)) for each in triples) / len(triples)
        assert angle_relation(student, teacher).item() == pytest.approx(angles, abs=1e-12)
        ours, theirs = plain_distances(x), plain_distances(y)
        distances = sum(huber(ours[each] - theirs[each]) for each in pairs) / len(pairs)
        assert distance_relation(student, teacher).item() == pytest.approx(distances, abs=1e-12)


def test_rows_that_are_nearly_the_same_count_as_one_at_every_scale() -> None:
    student, teacher = draw(BATCH, OURS), draw(BATCH, THEIRS, seed=1)
    student[1] = student[0] + 1e-6 * draw(OURS, seed=2)
    twice = student.clone()
    twice[1] = student[0]
    for scale in (1.0, 1e9):
        found = angle_relation(scale * student, teacher).item()
        assert found == pytest.approx(angle_relation(twice, teacher).item(), abs=1e-5)


@pytest.mark.parametrize("loss", ROW_LOSSES)
def test_row_relations_do_not_see_scale_place_and_width(loss: Loss) -> None:
    student = draw(BATCH, OURS)
    wide = torch.cat([3 * student + 7, torch.zeros(BATCH, 2, dtype=torch.float64)], dim=1)
    assert loss(student, wide).item() == pytest.approx(0.0, abs=1e-12)
    assert loss(student, draw(BATCH, OURS, seed=1)).item() > 1e-3


@pytest.mark.parametrize("loss", ROW_LOSSES)
@pytest.mark.parametrize("rows", [1, 2])
def test_too_few_rows_cost_nothing_and_stay_connected(loss: Loss, rows: int) -> None:
    student = leaf(rows, OURS)
    found = loss(student, draw(rows, THEIRS, seed=1))
    (gradient,) = torch.autograd.grad(found, student)
    assert found.item() == 0.0
    assert torch.equal(gradient, torch.zeros_like(student))


@pytest.mark.parametrize("loss", ROW_LOSSES)
@pytest.mark.parametrize("apart", [0.0, 1e-9])
@pytest.mark.parametrize("same", [2, BATCH])
def test_identical_rows_give_finite_gradients(loss: Loss, apart: float, same: int) -> None:
    """The square root at 0, and a direction between rows that are the same but for rounding."""
    rows = draw(BATCH, OURS)
    rows[:same] = rows[0] + apart * draw(same, OURS, seed=2)
    for student, teacher in ((rows, draw(BATCH, THEIRS, seed=1)), (draw(BATCH, OURS, seed=3), rows), (rows, rows)):
        student = student.clone().requires_grad_()
        found = loss(student, teacher)
        (gradient,) = torch.autograd.grad(found, student)
        assert found.isfinite()
        assert gradient.isfinite().all()
        if same == 2:
            assert gradient.abs().max() < 10


@pytest.mark.parametrize("loss", ROW_LOSSES)
def test_row_relations_of_half_precision_are_computed_in_float32(loss: Loss) -> None:
    student, teacher = draw(BATCH, OURS).bfloat16(), draw(BATCH, THEIRS, seed=1)
    found = loss(student, teacher.float())
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(loss(student.double(), teacher).item(), rel=1e-5)


def plain_relation(states: np.ndarray, heads: int) -> list[list[list[float]]]:
    """Of the real tokens [tokens, width] of one row: [heads][tokens][tokens]."""
    width = states.shape[1] // heads
    found = []
    for head in range(heads):
        part = states[:, head * width : (head + 1) * width]
        powers = [[math.exp(float(a @ b) / math.sqrt(width)) for b in part] for a in part]
        found.append([[power / sum(row) for power in row] for row in powers])
    return found


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("masked", [True, False])
def test_self_relation_equals_the_plain_divergence_of_each_head(heads: int, masked: bool) -> None:
    student, teacher = leaf(BATCH, TOKENS, OURS), draw(BATCH, TOKENS, THEIRS, seed=1)
    mask = ragged() if masked else torch.ones(BATCH, TOKENS, dtype=torch.bool)
    total, tokens = 0.0, 0
    for row in range(BATCH):
        ours, theirs = (plain_relation(each[row][mask[row]].detach().numpy(), heads) for each in (student, teacher))
        for token in range(int(mask[row].sum())):
            tokens += 1
            for head in range(heads):
                pairs = zip(theirs[head][token], ours[head][token], strict=True)
                total += sum(p * math.log(p / q) for p, q in pairs) / heads
    given = mask if masked else None
    assert self_relation_kl(student, teacher, given, heads=heads).item() == pytest.approx(total / tokens, abs=1e-12)
    assert torch.autograd.gradcheck(lambda x: self_relation_kl(x, teacher, given, heads=heads), student)


@pytest.mark.parametrize("filler", [1e9, torch.inf, torch.nan])
def test_padding_changes_neither_the_self_relation_nor_its_gradient(filler: float) -> None:
    mask, results = ragged(), []
    for value in (0.0, filler):
        student, teacher = (
            draw(BATCH, TOKENS, width, seed=seed).masked_fill(~mask[..., None], value)
            for seed, width in enumerate((OURS, THEIRS))
        )
        student.requires_grad_()
        found = self_relation_kl(student, teacher, mask, heads=2)
        results.append((found, torch.autograd.grad(found, student)[0]))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


def test_a_self_relation_of_one_token_or_of_none_costs_nothing_and_stays_connected() -> None:
    for tokens, real in ((1, True), (3, False)):
        student = leaf(2, tokens, OURS)
        mask = torch.full((2, tokens), real)
        found = self_relation_kl(student, draw(2, tokens, THEIRS, seed=1), mask, heads=2)
        (gradient,) = torch.autograd.grad(found, student)
        assert found.item() == 0.0
        assert torch.equal(gradient, torch.zeros_like(student))


def test_equal_states_relate_equally() -> None:
    states = draw(BATCH, TOKENS, OURS)
    assert self_relation_kl(states, states, ragged(), heads=3).item() == pytest.approx(0.0, abs=1e-12)
    assert self_relation_kl(states, 2 * states, ragged(), heads=3).item() > 1e-3


@pytest.mark.parametrize("shape", [(BATCH,), (BATCH, TOKENS)])
def test_the_teachers_side_gets_no_gradient(shape: tuple[int, ...]) -> None:
    for loss in ROW_LOSSES if len(shape) == 1 else (self_relation_kl,):
        student, teacher = leaf(*shape, OURS), leaf(*shape, THEIRS, seed=1)
        loss(student, teacher).backward()
        assert student.grad is not None
        assert student.grad.abs().sum() > 0
        assert teacher.grad is None


def test_what_does_not_fit_is_refused() -> None:
    rows, states = draw(BATCH, OURS), draw(BATCH, TOKENS, OURS)
    for loss in ROW_LOSSES:
        for wrong in (draw(BATCH - 1, THEIRS), states):
            with pytest.raises(InvalidTensor, match="same rows"):
                loss(rows, wrong)
    for wrong in (draw(BATCH, TOKENS - 1, THEIRS), rows):
        with pytest.raises(InvalidTensor, match="same tokens"):
            self_relation_kl(states, wrong)
    for mask in (torch.ones(BATCH, TOKENS), torch.ones(BATCH, 2, dtype=torch.bool)):
        with pytest.raises(InvalidTensor, match="mask"):
            self_relation_kl(states, states, mask)
    for heads in (0, 4):
        with pytest.raises(InvalidSetting, match=f"received {heads} for states of width 6 and 8"):
            self_relation_kl(states, draw(BATCH, TOKENS, THEIRS), heads=heads)
