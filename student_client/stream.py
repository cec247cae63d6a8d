"""The training rows as an endless stream of batches that goes on where a position says; knows no step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from student_client.config import TrainingConfig
from student_client.division import part_of
from student_client.members import read_by_teachers
from student_models import Student
from student_models.token_labels import labelled_view
from task_data import Batch, Split, batches, count_batches, token_lengths

__all__ = ["Place", "Stream"]


@dataclass(frozen=True)
class Place:
    """`batch` batches of `epoch` are done."""

    epoch: int = 0
    batch: int = 0


class Stream:
    """Batches of a split, epoch after epoch, each in an order that only seed and epoch decide.

    Args:
        split: the training rows.
        student: makes its view of them.
        training: batch size, labelled share, seed, and whether batches are of rows of similar length.
        ports: input ports of teachers to bring along.
        device: where the student's inputs and the labels go; the teacher's view stays, it is packed from there.
        rank: which of how many processes it is for; each gets its part of every batch.
    """

    def __init__(
        self,
        split: Split,
        student: Student,
        training: TrainingConfig,
        ports: Sequence[str],
        device: torch.device,
        rank: tuple[int, int] = (0, 1),
    ) -> None:
        self.split, self._rank = split, rank
        self.place = Place()
        self.epoch_batches = count_batches(split, training.batch_size, training.labelled_share)
        """Batches of one epoch."""
        self._training, self._device = training, device
        self._view: Mapping[str, torch.Tensor] = labelled_view(student, split)
        self._teacher_view: Mapping[str, torch.Tensor] = read_by_teachers(split, ports, self._view)
        self._lengths = token_lengths(self._view) if training.group_by_length else None
        self._epoch: Iterator[Batch] | None = None

    def go_to(self, place: Place) -> None:
        """Goes on behind `place`."""
        self.place, self._epoch = place, None

    def next(self) -> Batch:
        """The next batch."""
        if self.place.batch >= self.epoch_batches:
            self.go_to(Place(self.place.epoch + 1))
        if self._epoch is None:
            self._epoch = self._open()
        batch = next(self._epoch)
        self.place = replace(self.place, batch=self.place.batch + 1)
        return self._placed(part_of(batch, *self._rank))

    def _open(self) -> Iterator[Batch]:
        training, place = self._training, self.place
        return batches(
            self._view,
            self._teacher_view,
            self.split,
            training.batch_size,
            training.seed,
            place.epoch,
            place.batch,
            training.labelled_share,
            self._lengths,
        )

    def _placed(self, batch: Batch) -> Batch:
        return replace(
            batch,
            inputs={name: tensor.to(self._device) for name, tensor in batch.inputs.items()},
            labels=batch.labels.to(self._device),
            labelled=batch.labelled.to(self._device),
        )
