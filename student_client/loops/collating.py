"""Batches of any data loader with what teachers read beside what the student reads; knows no library and no teacher."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from student_client.teachers.members import STUDENT_TOKENS
from student_models.token_labels import next_tokens
from task_data import IGNORED, Batch, pack_texts
from task_data.config import Level
from teaching_protocol.errors import DataError

__all__ = ["PREFIX", "TeacherColumns", "batch_of", "student_inputs"]

PREFIX = "teacher_"
"""What the names of the teachers' inputs begin with in a collated batch."""


class TeacherColumns:
    """A collator that leaves some columns to the teachers: `text` becomes `teacher_text` [batch, bytes] uint8.

    A column of strings is packed as UTF-8, one of numbers or tensors is stacked. A teacher tokenizes text itself, so the
    student's tokenizer may be another.

    Args:
        collator: makes the student's batch of examples, which are mappings, without these columns.
        columns: names of columns that are input ports of teachers; those that are not there are left out.
    """

    def __init__(self, collator: Callable[[list[Any]], Mapping[str, Any]], columns: Sequence[str] = ("text",)) -> None:
        self.columns, self.tokenizer = tuple(columns), getattr(collator, "tokenizer", None)
        self._collator = collator

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The student's batch, and the teachers' beside it."""
        own = [{name: value for name, value in each.items() if name not in self.columns} for each in examples]
        found = dict(self._collator(own))
        for name in self.columns:
            if all(name in each for each in examples):
                found[PREFIX + name] = _stacked(name, [each[name] for each in examples])
        return found


def student_inputs(batch: Mapping[str, Any]) -> dict[str, Any]:
    """What the student takes of a batch: all but the teachers' inputs and the labels."""
    return {name: value for name, value in batch.items() if name != "labels" and not name.startswith(PREFIX)}


def batch_of(batch: Mapping[str, Any], rows: int, device: torch.device, level: Level = "row") -> Batch:
    """A collated batch as methods read it, of a student that was run already.

    A row whose label is -100, or no number, is unlabelled; without `labels` all are. Of several labels a row one such is
    enough. Labels of next tokens come as transformers has them, not shifted, and are shifted here; teachers that read the
    student's own tokens get them.

    Args:
        batch: with `teacher_*`, and perhaps `labels` [rows], [rows, classes] of zeros and ones, or [rows, tokens] where tokens
            have labels.
        rows: of the batch.
        device: of the student's outputs.
        level: what has a label.
    """
    if level != "row":
        return _of_tokens(batch, rows, device, level)
    teacher = {name.removeprefix(PREFIX): value for name, value in batch.items() if name.startswith(PREFIX)}
    given = batch.get("labels")
    labels = torch.full((rows,), IGNORED) if given is None else given.to(device)
    labels = labels.reshape(rows) if labels.numel() == rows else labels
    known = ~(labels.isnan() | (labels == IGNORED)) if labels.is_floating_point() else labels != IGNORED
    labelled = known.reshape(rows, -1).all(1)
    return Batch(torch.arange(rows), {}, teacher, labels.to(device), labelled.to(device))


def _of_tokens(batch: Mapping[str, Any], rows: int, device: torch.device, level: Level) -> Batch:
    ids = batch["input_ids"]
    mask = batch.get("attention_mask", torch.ones_like(ids))
    teacher = {name.removeprefix(PREFIX): value for name, value in batch.items() if name.startswith(PREFIX)}
    teacher |= dict(zip(STUDENT_TOKENS, (ids.cpu(), mask.cpu()), strict=True))
    labels = batch.get("labels", torch.full_like(ids, IGNORED))
    if level == "next_token":
        labels = next_tokens(labels, mask)
    return Batch(torch.arange(rows), {}, teacher, labels.to(device), (labels != IGNORED).any(1).to(device))


def _stacked(name: str, values: list[Any]) -> torch.Tensor:
    if all(isinstance(value, str) for value in values):
        return pack_texts(values)
    try:
        found = torch.stack([torch.as_tensor(value) for value in values])
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(
            f"column {name!r}: received {type(values[0]).__name__}, expected text or numbers of one shape"
        ) from error
    return found[:, None] if found.dim() == 1 else found
