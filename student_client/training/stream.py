"""The training rows as an endless stream of batches that goes on where a position says; knows no step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from student_client.config import RunConfig, TrainingConfig
from student_client.teachers.members import read_by_teachers
from student_client.training.division import part_of
from student_models import Student
from student_models.token_labels import labelled_view
from task_data import Batch, RowStream, Split, batches, count_batches, token_lengths
from teaching_protocol.errors import ConfigError, DataError

__all__ = ["Place", "Stream", "check_streamable"]


@dataclass(frozen=True)
class Place:
    """`batch` batches of `epoch` are done; of a stream, of its block number `block`, which begins at `state`."""

    epoch: int = 0
    batch: int = 0
    block: int = 0
    state: str | None = None


@dataclass(frozen=True)
class _Block:
    """Rows that are in memory, as student and teachers see them; `behind` is where a stream goes on."""

    split: Split
    view: Mapping[str, torch.Tensor]
    teacher_view: Mapping[str, torch.Tensor]
    lengths: torch.Tensor | None
    batches: int
    behind: str | None = None


class Stream:
    """Batches of the training rows, epoch after epoch, each in an order that only seed and place decide.

    Rows in memory are one block, shuffled anew in every epoch. Of a stream a block is read, shuffled and let go, and then
    the next one, so that an epoch is one pass over its blocks; labelled and unlabelled rows come as they are.

    Args:
        rows: the training rows.
        student: makes its view of them.
        training: batch size, labelled share, seed, and whether batches are of rows of similar length.
        ports: input ports of teachers to bring along.
        device: where the student's inputs and the labels go; the teacher's view stays, it is packed from there.
        rank: which of how many processes it is for; each gets its part of every batch.
    """

    def __init__(
        self,
        rows: Split | RowStream,
        student: Student,
        training: TrainingConfig,
        ports: Sequence[str],
        device: torch.device,
        rank: tuple[int, int] = (0, 1),
    ) -> None:
        self.place = Place()
        self._rows, self._student, self._rank = rows, student, rank
        self._training, self._ports, self._device = training, ports, device
        self._share = training.labelled_share
        if isinstance(rows, RowStream) and self._share != 1:
            self._share = None  # else a block's few unlabelled rows would say how many of the labelled ones are seen
        self._block: _Block | None = None if isinstance(rows, RowStream) else self._prepared(rows)
        self.epoch_batches = 0 if self._block is None else self._block.batches
        """Batches of one epoch; 0 of a stream, which does not know."""
        self._epoch: Iterator[Batch] | None = None
        self._barren = 0  # passes over a stream without a batch

    def go_to(self, place: Place) -> None:
        """Goes on behind `place`."""
        if isinstance(self._rows, RowStream) and (place.block, place.state) != (self.place.block, self.place.state):
            self._block = None
        self.place, self._epoch = place, None

    def next(self) -> Batch:
        """The next batch.

        Raises:
            DataError: a stream that cannot be read on, or has no row to train on.
        """
        block = self._at_hand()
        while self.place.batch >= block.batches:
            self.go_to(self._behind(block))
            block = self._at_hand()
        if self._epoch is None:
            self._epoch = self._open(block)
        batch = next(self._epoch)
        self._barren = 0
        self.place = replace(self.place, batch=self.place.batch + 1)
        return self._placed(part_of(batch, *self._rank))

    def _at_hand(self) -> _Block:
        """The block of this place."""
        if self._block is None:
            assert isinstance(self._rows, RowStream), "rows in memory are prepared once"
            self._block = self._prepared(*self._rows.block(self.place.state))
        return self._block

    def _behind(self, block: _Block) -> Place:
        """Where it goes on when a block is done."""
        place = self.place
        if not isinstance(self._rows, RowStream):
            return Place(place.epoch + 1)
        if block.behind is not None:
            return Place(place.epoch, 0, place.block + 1, block.behind)
        self._barren += 1
        if self._barren > 1:
            raise DataError(f"{self._rows.source}: no row of it can be trained on; give rows with a text, and labels")
        return Place(place.epoch + 1, 0, place.block + 1)

    def _prepared(self, split: Split, behind: str | None = None) -> _Block:
        training = self._training
        if not (split.labelled.any() if self._share == 1 else len(split)):
            return _Block(split, {}, {}, None, 0, behind)
        view = labelled_view(self._student, split)
        lengths = token_lengths(view) if training.group_by_length else None
        count = count_batches(split, training.batch_size, self._share)
        return _Block(split, view, read_by_teachers(split, self._ports, view), lengths, count, behind)

    def _open(self, block: _Block) -> Iterator[Batch]:
        training, place = self._training, self.place
        return batches(
            block.view,
            block.teacher_view,
            block.split,
            training.batch_size,
            training.seed,
            place.block if isinstance(self._rows, RowStream) else place.epoch,
            place.batch,
            self._share,
            block.lengths,
        )

    def _placed(self, batch: Batch) -> Batch:
        return replace(
            batch,
            inputs={name: tensor.to(self._device) for name, tensor in batch.inputs.items()},
            labels=batch.labels.to(self._device),
            labelled=batch.labelled.to(self._device),
        )


def check_streamable(config: RunConfig) -> None:
    """Refuses a stream without an end to the run: nobody knows how many batches an epoch of it has.

    Raises:
        ConfigError: `data.streaming` without `training.max_steps`.
    """
    if config.data.streaming and config.training.max_steps is None:
        raise ConfigError(
            f"training.max_steps: received none with data.streaming, expected a number of steps: training.epochs "
            f"({config.training.epochs}) says nothing where the rows are not counted; set training.max_steps"
        )
