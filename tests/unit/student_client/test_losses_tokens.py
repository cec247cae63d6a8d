"""Losses of tokens: against the formulas written plainly in float64, and the bound that the top k give."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from student_client.losses import shared_head_kl, task_loss, token_cross_entropy, token_kl, top_kl
from student_client.losses import tokens as module
from task_data import IGNORED
from teacher_server.engine.vocabulary import likeliest
from teaching_protocol.errors import InvalidSetting, InvalidTensor

ROWS, TOKENS, VOCABULARY, WIDTH = 3, 5, 23, 7


def drawn(seed: int, *shape: int, scale: float = 3.0) -> torch.Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def some_mask(seed: int) -> torch.Tensor:
    mask = torch.rand(ROWS, TOKENS, generator=torch.Generator().manual_seed(seed)) < 0.6
    mask[0, 0] = True
    return mask


def plain_kl(teacher: torch.Tensor, student: torch.Tensor, mask: torch.Tensor, temperature: float) -> torch.Tensor:
    """T^2 sum_v p (log p - log q), the mean over the tokens of a mask."""
    p, q = ((each / temperature).softmax(-1) for each in (teacher, student))
    return temperature**2 * (p * (p.log() - q.log())).sum(-1)[mask].mean()


def asked(teacher: torch.Tensor, k: int, percent: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What the server gives of these logits: it takes the identity for its head here."""
    ports = (f"logprobs.top{k}.t{percent}", f"tokens.top{k}")
    found = likeliest(teacher, lambda states: states, ports)
    return found[ports[0]], found[ports[1]]


def test_cross_entropy_is_of_labelled_tokens_alone() -> None:
    logits, labels = drawn(0, ROWS, TOKENS, 4), torch.randint(4, (ROWS, TOKENS))
    labels[0, 2:] = labels[2, 0] = IGNORED
    labels[1] = -1  # hidden: its row is not labelled
    labelled = torch.tensor([True, False, True])
    terms = [
        -logits[row, token].log_softmax(-1)[labels[row, token]]
        for row in (0, 2)
        for token in range(TOKENS)
        if labels[row, token] != IGNORED
    ]
    assert len(terms) == 6
    found = token_cross_entropy(logits, labels, labelled)
    torch.testing.assert_close(found, torch.stack(terms).mean())
    torch.testing.assert_close(task_loss(logits, labels, labelled), found)


def test_without_a_labelled_token_it_is_zero_and_connected() -> None:
    logits = drawn(0, ROWS, TOKENS, 4).requires_grad_()
    loss = token_cross_entropy(logits, torch.full((ROWS, TOKENS), IGNORED), torch.ones(ROWS, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert not logits.grad.any()
    empty = token_kl(logits, logits, torch.zeros(ROWS, TOKENS, dtype=torch.bool))
    assert empty.item() == 0


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("piece", [1, 2 * VOCABULARY, 10**6])
def test_all_forms_equal_the_plain_divergence(temperature: float, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole logits, all but one of the likeliest, and the head held here: the same number and the same gradient."""
    monkeypatch.setattr(module, "_PIECE_NUMBERS", piece)
    hidden, head, mask = drawn(1, ROWS, TOKENS, WIDTH, scale=1), drawn(2, VOCABULARY, WIDTH, scale=1), some_mask(3)
    student, teacher = drawn(4, ROWS, TOKENS, VOCABULARY), hidden @ head.T
    logprobs, places = asked(teacher, VOCABULARY - 1, round(100 * temperature))
    forms = [
        lambda ours: plain_kl(teacher, ours, mask, temperature),
        lambda ours: token_kl(ours, teacher, mask, temperature=temperature),
        lambda ours: top_kl(ours, logprobs, places, mask, temperature=temperature),
        lambda ours: shared_head_kl(ours, hidden, head, mask, temperature=temperature),
    ]
    found = []
    for form in forms:
        leaf = student.clone().requires_grad_()
        loss = form(leaf)
        loss.backward()
        found.append((loss.detach(), leaf.grad))
    for loss, gradient in found[1:]:
        torch.testing.assert_close(loss, found[0][0], atol=1e-5, rtol=1e-5, check_dtype=False)
        torch.testing.assert_close(gradient, found[0][1], atol=1e-5, rtol=1e-5, check_dtype=False)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    scale=st.floats(0.1, 12.0),
    ks=st.lists(st.integers(1, VOCABULARY - 1), min_size=2, max_size=2, unique=True),
    percent=st.sampled_from([50, 100, 200]),
)
def test_fewer_classes_say_less_and_never_more(seed: int, scale: float, ks: list[int], percent: int) -> None:
    """0 <= KL over k + 1 <= KL over more <= KL over all: it is a lower bound, and grows with k."""
    student = drawn(seed, ROWS, TOKENS, VOCABULARY, scale=scale)
    teacher = drawn(seed + 1, ROWS, TOKENS, VOCABULARY, scale=scale)
    mask, temperature = some_mask(seed), percent / 100
    few, many = (top_kl(student, *asked(teacher, k, percent), mask, temperature=temperature).item() for k in sorted(ks))
    whole = plain_kl(teacher, student, mask, temperature).item()
    slack = 1e-4 * max(1.0, whole)
    assert -slack <= few <= many + slack <= whole + 2 * slack


def test_the_gradient_of_a_sure_student_is_finite() -> None:
    """All of its probability on one token, which the teacher does not think of: no NaN comes back."""
    student = torch.full((1, 1, VOCABULARY), -200.0)
    student[..., 3] = 200.0
    student.requires_grad_()
    teacher = torch.zeros(1, 1, VOCABULARY)
    teacher[..., 5] = 400.0
    loss = top_kl(student, *asked(teacher, 2, 100), torch.ones(1, 1, dtype=torch.bool))
    loss.backward()
    assert loss.isfinite()
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_rounded_log_probabilities_still_are_a_distribution() -> None:
    """After bfloat16 on the wire the target is normalised again: a student that agrees with it has no loss."""
    logprobs, places = asked(drawn(0, ROWS, TOKENS, VOCABULARY), 4, 100)
    rounded = logprobs.to(torch.bfloat16).float()
    target = rounded.log_softmax(-1)
    student = torch.full((ROWS, TOKENS, VOCABULARY), 0.0)
    student[:] = (target[..., -1:].exp() / (VOCABULARY - 4)).log()
    student.scatter_(-1, places.long(), target[..., :-1])
    assert abs(top_kl(student, rounded, places, some_mask(0)).item()) < 1e-6


def test_what_does_not_fit_is_refused() -> None:
    logits, mask = drawn(0, ROWS, TOKENS, VOCABULARY), some_mask(0)
    logprobs, places = asked(logits, 4, 100)
    with pytest.raises(InvalidTensor, match="same labels for the same tokens"):
        token_kl(logits, logits[..., :-1], mask)
    with pytest.raises(InvalidTensor, match=r"expected \[batch, tokens, k \+ 1\]"):
        top_kl(logits, logprobs[:, :-1], places, mask)
    with pytest.raises(InvalidTensor, match="hold the head of the teacher"):
        shared_head_kl(logits, drawn(1, ROWS, TOKENS, WIDTH), drawn(2, VOCABULARY + 1, WIDTH), mask)
    with pytest.raises(InvalidSetting, match="temperature: received 0"):
        token_kl(logits, logits, mask, temperature=0.0)
