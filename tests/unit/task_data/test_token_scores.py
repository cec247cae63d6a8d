"""What is counted of tokens, against sums written out and spans marked by hand."""

from __future__ import annotations

import math

import pytest
import torch

from student_client.training.evaluate import Scores
from task_data import IGNORED, Task
from task_data.token_scores import TokenCounts, spans_of

TAGS = ("B-org", "B-per", "I-org", "I-per", "O")


@pytest.mark.parametrize(
    ("tags", "spans"),
    [
        ("O O O", set()),
        ("B-per I-per O B-org", {("per", 0, 2), ("org", 3, 4)}),
        ("B-per B-per", {("per", 0, 1), ("per", 1, 2)}),
        ("B-per I-org I-org", {("per", 0, 1), ("org", 1, 3)}),
        ("O I-per O I-per", {("per", 1, 2), ("per", 3, 4)}),
        ("I-per I-per", {("per", 0, 2)}),
    ],
)
def test_spans(tags: str, spans: set[tuple[str, int, int]]) -> None:
    assert spans_of(tags.split()) == spans


def logits_of(tags: list[str]) -> torch.Tensor:
    return torch.stack([4.0 * torch.eye(len(TAGS))[TAGS.index(tag)] for tag in tags])


def test_counts_of_two_rows() -> None:
    """Row 1 has one span right and one too many, row 2 one too short; a token without a label counts nowhere."""
    said = [["B-per", "I-per", "O", "B-org"], ["B-per", "O", "O", "O"]]
    labels = [["B-per", "I-per", "O", "O"], ["B-per", "I-per", "O"]]
    wanted = torch.full((2, 4), IGNORED)
    for row, tags in enumerate(labels):
        wanted[row, : len(tags)] = torch.tensor([TAGS.index(tag) for tag in tags])
    counts = TokenCounts(Task("names", TAGS, level="token"))
    for row in range(2):
        counts.add(logits_of(said[row])[None], wanted[row : row + 1])
    assert counts.tokens == 7
    assert counts.accuracy == pytest.approx(5 / 7)
    assert counts.span_f1 == pytest.approx(2 * 1 / (3 + 2))
    # B-org: only said. B-per: 2 of 2. I-per: 1 of 2, said once. O: 2 said of its 3, said 3 times
    assert counts.macro_f1 == pytest.approx((0 + 1 + 2 / 3 + 4 / 6) / 4)
    right, wrong = (math.log(math.exp(4) + 4) - 4 * hit for hit in (1, 0))
    assert counts.loss == pytest.approx((5 * right + 2 * wrong) / 7, rel=1e-5)


def test_next_tokens_have_perplexity_and_no_classes() -> None:
    counts = TokenCounts(Task("text", level="next_token"))
    counts.add(torch.zeros(1, 3, 8), torch.tensor([[0, 5, IGNORED]]))
    assert counts.perplexity == pytest.approx(8)
    assert counts.accuracy == 0.5
    assert counts.macro_f1 is None
    assert counts.span_f1 is None


@pytest.mark.parametrize(
    ("task", "metric"),
    [
        (Task("a", ("no", "yes")), "accuracy"),
        (Task("a"), "rmse"),
        (Task("a", ("NOUN", "VERB"), level="token"), "accuracy"),
        (Task("a", TAGS, level="token"), "span_f1"),
        (Task("a", level="next_token"), "perplexity"),
    ],
)
def test_the_metric_of_a_task(task: Task, metric: str) -> None:
    assert task.metric == metric
    assert Scores(metric, 1.0, 0.0, 1).better_than(2.0) is (metric in ("rmse", "perplexity"))


def test_a_record_begins_with_the_metric() -> None:
    found = Scores("span_f1", 0.5, 0.1, 10, 0.4, accuracy=0.9).as_dict()
    assert next(iter(found.items())) == ("span_f1", 0.5)
    assert found == {"span_f1": 0.5, "loss": 0.1, "macro_f1": 0.4, "accuracy": 0.9}
