"""Labels on a student's tokens, made here and nowhere else: a word's on its first token, and next tokens by one shift."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch

from student_models.columns import text_column
from student_models.student import Student, Tensors
from task_data import IGNORED, TOKEN_LABELS, Split
from teaching_protocol.errors import DataError

__all__ = ["labelled_view", "next_tokens", "on_first_tokens"]

Spans = Sequence[tuple[int, int]]
"""Where each token of a text lies in it: its first character, and the one behind its last."""


def labelled_view(student: Student, split: Split) -> Tensors:
    """The student's view of a split; of a task with labels for tokens they are in it, as `TOKEN_LABELS` [N, tokens].

    Words that lie behind the cut of a long text have no token, and so no label.

    Raises:
        DataError: the student does not read text.
    """
    view = student.view(split.columns)
    if student.task.level == "row":
        return view
    if "attention_mask" not in view:
        raise DataError(
            f"the task {student.task.name} has labels for tokens, and this student reads none; give it text"
        )
    if student.task.level == "next_token":
        return {**view, TOKEN_LABELS: next_tokens(view["input_ids"], view["attention_mask"])}
    texts = text_column(split.columns, "text")
    labels = on_first_tokens(split.labels, texts, student.spans(texts), view["input_ids"].shape[1])
    return {**view, TOKEN_LABELS: labels}


def next_tokens(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """What follows each token: ids [N, tokens] shifted by one; `IGNORED` at the last real one and at padding.

    Args:
        ids: [N, tokens] int64, padded on the right; labels that are `IGNORED` stay so.
        mask: [N, tokens], 0 at padding.
    """
    following = torch.full_like(ids, IGNORED)
    following[:, :-1] = ids[:, 1:].masked_fill(mask[:, 1:] == 0, IGNORED)
    return following


def on_first_tokens(labels: torch.Tensor, texts: Sequence[str], spans: Sequence[Spans], tokens: int) -> torch.Tensor:
    """The label of each word on the first token that covers its first character; `IGNORED` on all others.

    Args:
        labels: [N, words], `IGNORED` behind a text's last word.
        texts: N texts, their words between single spaces.
        spans: of each text's tokens.
        tokens: of the longest row.

    Returns:
        [N, tokens] int64.
    """
    found = torch.full((len(texts), tokens), IGNORED)
    for row, (text, covered) in enumerate(zip(texts, spans, strict=True)):
        starts = [0, *accumulate(len(word) + 1 for word in text.split(" "))][:-1]
        token = 0
        for word, start in enumerate(starts):
            while token < len(covered) and covered[token][1] <= start:
                token += 1
            if token < len(covered) and covered[token][0] <= start:
                found[row, token] = labels[row, word]
                token += 1
    return found
