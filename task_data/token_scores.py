"""What a student scores on tokens, counted batch by batch: whole splits of logits are never held; knows no teacher."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch.nn import functional

from task_data.splits import IGNORED, Task

__all__ = ["TokenCounts", "spans_of"]


class TokenCounts:
    """Counts over the tokens with a label, of one task.

    Attributes:
        tokens: how many were counted.
    """

    def __init__(self, task: Task) -> None:
        self._task = task
        self.tokens = 0
        self._loss = 0.0
        self._hits = 0
        classes = len(task.labels)
        self._confusion = torch.zeros(classes, classes, dtype=torch.int64)  # [label, predicted]; none for next tokens
        self._spans = [0, 0, 0]  # found and right, found, to be found

    def add(self, outputs: torch.Tensor, labels: torch.Tensor) -> None:
        """Counts a batch: logits [rows, tokens, classes] and labels [rows, tokens]."""
        known = labels != IGNORED
        logits, wanted = outputs[known].float(), labels[known]
        predicted = logits.argmax(-1)
        self.tokens += len(wanted)
        self._loss += functional.cross_entropy(logits, wanted, reduction="sum").double().item()
        self._hits += int((predicted == wanted).sum())
        if classes := len(self._confusion):
            pairs = (wanted * classes + predicted).cpu()
            self._confusion += torch.bincount(pairs, minlength=classes**2).view(classes, classes)
        if self._task.has_spans:
            self._count_spans(predicted.cpu(), wanted.cpu(), known.sum(1).tolist())

    @property
    def loss(self) -> float:
        """Mean cross-entropy, in nats."""
        return self._loss / self.tokens

    @property
    def perplexity(self) -> float:
        """exp of it."""
        return math.exp(min(self.loss, 700.0))

    @property
    def accuracy(self) -> float:
        """Share of the tokens whose label is predicted."""
        return self._hits / self.tokens

    @property
    def macro_f1(self) -> float | None:
        """Mean F1 of the classes that occur among labels or predictions; None for next tokens."""
        if not len(self._confusion):
            return None
        hits, named = self._confusion.diag(), self._confusion.sum(0) + self._confusion.sum(1)
        return float((2 * hits[named > 0] / named[named > 0]).mean())

    @property
    def span_f1(self) -> float | None:
        """F1 of whole spans with their kinds, of all rows together; 0 where there are none, None without spans."""
        if not self._task.has_spans:
            return None
        right, found, wanted = self._spans
        return 2 * right / (found + wanted) if found + wanted else 0.0

    def _count_spans(self, predicted: torch.Tensor, labels: torch.Tensor, lengths: list[int]) -> None:
        for ours, theirs in zip(torch.split(predicted, lengths), torch.split(labels, lengths), strict=True):
            found, wanted = (spans_of([self._task.labels[number] for number in row.tolist()]) for row in (ours, theirs))
            for place, count in enumerate((len(found & wanted), len(found), len(wanted))):
                self._spans[place] += count


def spans_of(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """Kind, first token and the one behind the last of every span that B-, I- and O tags mark.

    An I-x that follows no x begins a span, as in the evaluation of CoNLL-2000 (Tjong Kim Sang and Buchholz).
    """
    found: set[tuple[str, int, int]] = set()
    kind, start = "", 0
    for place, tag in enumerate([*tags, "O"]):
        prefix, _, name = tag.partition("-")
        goes_on = prefix == "I" and name == kind
        if kind and not goes_on:
            found.add((kind, start, place))
            kind = ""
        if prefix in ("B", "I") and not goes_on:
            kind, start = name, place
    return found
