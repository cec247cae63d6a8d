"""Labels of words under a teacher's own tokens: where each is read, and what it is held against; knows no head and no epoch."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import nn

from student_models.token_labels import on_first_tokens
from task_data import IGNORED, Split, Task, teacher_view
from task_data.token_scores import TokenCounts
from teacher_server.families.pretrained import PretrainedFamily
from teacher_server.finetuning.tuning import Objective
from teacher_server.models.split import FrozenTeacher
from teaching_protocol.errors import DataError

__all__ = ["TokenObjective", "Words", "at", "words_of"]


@dataclass(frozen=True)
class Words:
    """The words of N texts: `places` [N, words] int64, the token where each is read, and `labels` [N, words], `IGNORED` where
    there is none, or no token of it is left of a text that was cut."""

    places: torch.Tensor
    labels: torch.Tensor


def words_of(teacher: FrozenTeacher, split: Split, max_tokens: int) -> Words:
    """Each word at the first token that covers its first character, as students have it.

    Args:
        teacher: with a fast tokenizer.
        split: of a task with labels for tokens.
        max_tokens: a longer text is cut, as the server does.

    Raises:
        DataError: no word has a label, or the tokenizer does not tell where its tokens lie.
    """
    family = teacher.family
    assert isinstance(family, PretrainedFamily), "`with_head` gives no other"
    texts = [bytes(row.tolist()).rstrip(b"\0").decode() for row in teacher_view(split)["text"]]
    limit = min(max_tokens, getattr(family, "max_tokens", None) or max_tokens)
    if not getattr(family.tokenizer, "is_fast", False):
        raise DataError(
            f"{teacher.name}: its tokenizer does not tell where tokens lie; give a model with a tokenizer.json"
        )
    found = family.tokenizer(texts, truncation=True, max_length=limit, return_offsets_mapping=True)  # type: ignore[misc]
    spans = found["offset_mapping"]
    numbers = torch.arange(split.labels.shape[1]).expand_as(split.labels).masked_fill(split.labels == IGNORED, IGNORED)
    said = on_first_tokens(numbers, [str(text) for text in split.teacher], spans, max(map(len, spans)))
    rows, tokens = (said != IGNORED).nonzero(as_tuple=True)
    words = said[rows, tokens]
    if not len(words):
        raise DataError(f"{teacher.name}: no word of {len(texts)} rows has a label and a token; look at the data")
    places, labels = torch.zeros_like(split.labels), torch.full_like(split.labels, IGNORED)
    places[rows, words], labels[rows, words] = tokens, split.labels[rows, words]
    return Words(places, labels)


def at(states: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """What [rows, tokens, width] holds at places [rows, words]: [rows, words, width]."""
    return states[torch.arange(len(states), device=states.device)[:, None], places.to(states.device)]


@dataclass(frozen=True)
class TokenObjective(Objective):
    """Classes of words: outputs [rows, words, classes] against labels [rows, words]."""

    task: Task = field(kw_only=True)

    @property
    def metric(self) -> str:
        """span_f1 where classes mark spans, else accuracy; higher is better."""
        return self.task.metric

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Cross-entropy, mean over the words with a label."""
        return nn.functional.cross_entropy(outputs.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)

    def score(self, outputs: torch.Tensor, targets: torch.Tensor) -> float:
        """The metric over all words with a label."""
        counts = TokenCounts(self.task)
        counts.add(outputs.cpu(), targets.cpu())
        found = counts.span_f1
        return counts.accuracy if found is None else found
