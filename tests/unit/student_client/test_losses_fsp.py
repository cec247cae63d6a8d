"""The FSP matrices and their error against plain float64 loops."""

from __future__ import annotations

import pytest
import torch

from student_client.losses import flow_error, flow_matrix
from teaching_protocol.errors import InvalidTensor


def states(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def reference(first: torch.Tensor, second: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """G[b, i, j] = (1 / len_b) sum_t H_a[b, t, i] H_b[b, t, j], number by number."""
    found = torch.zeros(len(first), first.shape[2], second.shape[2], dtype=torch.float64)
    for row in range(len(first)):
        for token in range(first.shape[1]):
            if mask[row, token]:
                for i in range(first.shape[2]):
                    for j in range(second.shape[2]):
                        found[row, i, j] += first[row, token, i] * second[row, token, j] / mask[row].sum()
    return found


def normalised(tensor: torch.Tensor) -> torch.Tensor:
    mean = tensor.mean(-1, keepdim=True)
    return (tensor - mean) / ((tensor - mean).square().mean(-1, keepdim=True) + 1e-5).sqrt()


MASK = torch.tensor([[True, True, True, False], [True, False, False, False], [True, True, True, True]])


def test_the_flow_matrix_is_the_mean_outer_product_over_real_tokens() -> None:
    first, second = states(3, 4, 5), states(3, 4, 2, seed=1)
    torch.testing.assert_close(flow_matrix(first, second, MASK), reference(first, second, MASK))
    every = torch.ones_like(MASK)
    torch.testing.assert_close(flow_matrix(first, second), reference(first, second, every))


@pytest.mark.parametrize("normalise", [True, False])
def test_the_error_is_the_mean_square_of_the_difference(normalise: bool) -> None:
    ours = states(3, 4, 5), states(3, 4, 2, seed=1)
    theirs = states(3, 7, 5, seed=2), states(3, 7, 2, seed=3)
    every = torch.ones(3, 7, dtype=torch.bool)
    found = flow_error(ours, theirs, MASK, every, normalise=normalise)
    if normalise:
        ours, theirs = (normalised(ours[0]), normalised(ours[1])), (normalised(theirs[0]), normalised(theirs[1]))
    wanted = (reference(*ours, MASK) - reference(*theirs, every)).square().sum() / (3 * 5 * 2)
    torch.testing.assert_close(found, wanted)


def test_what_stands_in_padding_changes_nothing() -> None:
    ours = states(3, 4, 5), states(3, 4, 5, seed=1)
    theirs = states(3, 2, 5, seed=2), states(3, 2, 5, seed=3)
    before = flow_error(ours, theirs, MASK)
    spoiled = [each.masked_fill(~MASK[..., None], 1e6) for each in ours]
    torch.testing.assert_close(flow_error((spoiled[0], spoiled[1]), theirs, MASK), before)


def test_the_same_states_cost_nothing_and_both_sides_get_a_gradient() -> None:
    first, second = states(2, 3, 4).requires_grad_(), states(2, 3, 4, seed=1).requires_grad_()
    assert flow_error((first, second), (first, second)).item() == 0.0
    other = states(2, 6, 4, seed=2).requires_grad_()
    flow_error((first, second), (other, other)).backward()
    assert all(each.grad is not None and each.grad.abs().sum() > 0 for each in (first, second, other))


def test_a_row_without_a_token_gives_zeros_and_no_nan() -> None:
    first = states(2, 3, 4).requires_grad_()
    mask = torch.tensor([[True, True, True], [False, False, False]])
    assert flow_matrix(first, first, mask)[1].abs().sum() == 0
    flow_error((first, first), (states(2, 3, 4, seed=1), states(2, 3, 4, seed=2)), mask).backward()
    assert first.grad is not None
    assert torch.isfinite(first.grad).all()


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [((2, 3, 4), (2, 5, 4), "same tokens"), ((3, 4), (3, 4), "batch, tokens, width")],
)
def test_states_that_do_not_fit_are_refused(first: tuple[int, ...], second: tuple[int, ...], said: str) -> None:
    with pytest.raises(InvalidTensor, match=said):
        flow_matrix(states(*first), states(*second))


def test_other_widths_and_other_masks_are_refused() -> None:
    ours = states(2, 3, 4), states(2, 3, 4)
    with pytest.raises(InvalidTensor, match="project the teacher's"):
        flow_error(ours, (states(2, 3, 6), states(2, 3, 4)))
    with pytest.raises(InvalidTensor, match="mask: received"):
        flow_matrix(*ours, torch.ones(2, 4, dtype=torch.bool))
