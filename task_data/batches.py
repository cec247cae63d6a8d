"""Batches of a split in an order that only seed and epoch decide; knows no student, no teacher and no loss."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from task_data.splits import Split
from teaching_protocol.errors import DataError, InvalidSetting

__all__ = ["Batch", "batches", "count_batches", "teacher_ports", "teacher_view"]

Tensors = Mapping[str, torch.Tensor]

_MAX_TEXT_BYTES = 2048


@dataclass(frozen=True)
class Batch:
    """B examples: `rows` [B] int64 in their split, the student's `inputs` and the teachers', both B first.

    `labels` [B] and `labelled` [B] bool are as in `Split`. `known` is what was observed of a teacher ahead of
    time: output ports by the teacher's place.
    """

    rows: torch.Tensor
    inputs: Tensors
    teacher: Tensors
    labels: torch.Tensor
    labelled: torch.Tensor
    known: Mapping[int, Tensors] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.rows)


def batches(
    view: Tensors,
    teacher: Tensors,
    split: Split,
    batch_size: int,
    seed: int,
    epoch: int,
    start: int = 0,
    labelled_share: float | None = None,
) -> Iterator[Batch]:
    """Gives the batches of one epoch from batch `start` on, the last one perhaps smaller.

    The order is drawn from (seed, epoch) alone, so a resumed run goes on exactly where it was. An epoch
    is one pass over all rows; with `labelled_share` one pass over the unlabelled rows, while the labelled
    ones come round as often as they must to fill their share of each batch.
    Padded tensors are trimmed to the longest row of the batch.

    Args:
        view: the student's input tensors for the N examples of the split, N first.
        teacher: the teacher's, likewise (`teacher_view`).
        split: the N examples.
        batch_size: at most so many examples a batch.
        seed: 0 or more.
        epoch: 0 or more.
        start: number of batches of this epoch that are done.
        labelled_share: part of each batch that is labelled, 0 to 1; 1 leaves the unlabelled rows out, None draws
            rows without regard to their label.

    Raises:
        InvalidSetting: a batch size under 1, or a negative seed, epoch or start.
        DataError: a tensor with another number of rows than the split.
    """
    if batch_size < 1 or min(seed, epoch, start) < 0:
        raise InvalidSetting(
            f"batch_size {batch_size}, seed {seed}, epoch {epoch}, start {start}: "
            f"batch_size must be 1 or more and the others 0 or more"
        )
    for name, tensor in [*view.items(), *teacher.items()]:
        if len(tensor) != len(split):
            raise DataError(f"{name}: {len(tensor)} rows for a split of {len(split)}; make the view of this split")
    if labelled_share is not None and not 0 <= labelled_share <= 1:
        raise InvalidSetting(f"labelled_share: received {labelled_share}, expected 0 to 1, or None")
    order = _order(split, batch_size, np.random.default_rng([seed, epoch]), labelled_share)
    return _batches(view, teacher, split, order[start:])


def count_batches(split: Split, batch_size: int, labelled_share: float | None = None) -> int:
    """Batches of one epoch of `batches` with these arguments."""
    return len(_order(split, batch_size, np.random.default_rng(0), labelled_share))


def _order(split: Split, batch_size: int, rng: np.random.Generator, labelled_share: float | None) -> list[torch.Tensor]:
    """The rows of each batch of an epoch."""
    labelled, unlabelled = (np.flatnonzero(split.labelled.numpy() == wanted) for wanted in (True, False))
    if labelled_share == 1:
        return list(torch.split(torch.from_numpy(rng.permutation(labelled)), batch_size))
    if labelled_share is None or not len(labelled) or not len(unlabelled):
        return list(torch.split(torch.from_numpy(rng.permutation(len(split))), batch_size))
    count = min(round(batch_size * labelled_share), batch_size - 1)
    others = torch.split(torch.from_numpy(rng.permutation(unlabelled)), batch_size - count)
    rounds = -(-len(others) * count // len(labelled))
    taught = torch.from_numpy(np.concatenate([rng.permutation(labelled) for _ in range(max(1, rounds))]))
    return [torch.cat([taught[at * count : (at + 1) * count], rows]) for at, rows in enumerate(others)]


def _batches(view: Tensors, teacher: Tensors, split: Split, order: Sequence[torch.Tensor]) -> Iterator[Batch]:
    for rows in order:
        yield Batch(rows, _take(view, rows), _take(teacher, rows), split.labels[rows], split.labelled[rows])


def _take(tensors: Tensors, rows: torch.Tensor) -> dict[str, torch.Tensor]:
    taken = {name: tensor[rows] for name, tensor in tensors.items()}
    for padded in taken.keys() & {"attention_mask", "text"}:
        width = taken[padded].shape[1]
        used = taken[padded].ne(0).any(dim=0).nonzero()
        longest = int(used[-1]) + 1 if len(used) else 1
        for name, tensor in taken.items():
            if tensor.dim() > 1 and tensor.shape[1] == width and (padded == "attention_mask" or name == padded):
                taken[name] = tensor[:, :longest]
    return taken


def teacher_ports(split: Split) -> tuple[str, ...]:
    """Names of the teachers' input ports that a split can fill: `image` or `text`, and the columns of numbers."""
    own = "image" if isinstance(split.teacher, torch.Tensor) else "text"
    return own, *(name for name, column in split.columns.items() if _is_number(column))


def teacher_view(split: Split, ports: Sequence[str] | None = None) -> Tensors:
    """Gives the teachers' input ports for the N examples of a split.

    Args:
        split: the N examples.
        ports: some of `teacher_ports`; None takes the data set's own view for a teacher.

    Returns:
        `image`: uint8 [N, channels, height, width]; `text`: uint8 [N, bytes], UTF-8 padded with zeros and cut after
        2048 bytes on the border of a character (the server's tokenizer reads it); a column of numbers, such as
        `user`: int64 [N, 1].
    """
    found: dict[str, torch.Tensor] = {}
    for port in teacher_ports(split)[:1] if ports is None else ports:
        if port == "text":
            found[port] = _pad([_cut(str(text)) for text in split.teacher])
        elif port == "image" and isinstance(split.teacher, torch.Tensor):
            found[port] = split.teacher
        else:
            column = split.columns[port]
            assert isinstance(column, torch.Tensor), "teacher_ports names columns of numbers only"
            found[port] = column[:, None]
    return found


def _is_number(column: Sequence[str] | torch.Tensor) -> bool:
    return isinstance(column, torch.Tensor) and column.dim() == 1


def _cut(text: str) -> bytes:
    return text.encode()[:_MAX_TEXT_BYTES].decode(errors="ignore").encode()


def _pad(texts: Sequence[bytes]) -> torch.Tensor:
    width = max((len(text) for text in texts), default=1) or 1
    joined = bytearray(b"".join(text.ljust(width, b"\0") for text in texts))
    if not joined:
        return torch.empty((0, width), dtype=torch.uint8)
    return torch.frombuffer(joined, dtype=torch.uint8).reshape(len(texts), width)
