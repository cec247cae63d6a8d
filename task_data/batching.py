"""Batches of a split in an order that only seed and epoch decide; knows no student, no teacher and no loss."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from task_data.splits import Split
from teaching_protocol.errors import DataError, InvalidSetting

__all__ = [
    "TOKEN_LABELS",
    "Batch",
    "batches",
    "count_batches",
    "pack_texts",
    "teacher_ports",
    "teacher_view",
    "token_lengths",
]

Tensors = Mapping[str, torch.Tensor]

TOKEN_LABELS = "token_labels"
"""Name in a student's view of what lies on its tokens, [N, tokens] int64: the labels of its batches, where it is there."""

_MAX_TEXT_BYTES = 2048
_WINDOW = 50  # batches that are sorted together: enough for even lengths, and an epoch's order stays random


@dataclass(frozen=True)
class Batch:
    """B examples: `rows` [B] int64 in their split, the student's `inputs` and the teachers', both B first.

    `part` says that these are so many rows of a batch of so many, which several processes have divided; equal numbers are all.
    `labels` [B] and `labelled` [B] bool are as in `Split`; on a student's tokens labels are [B, tokens]. `known` is what was observed of a teacher ahead of
    time: output ports by the teacher's place.
    """

    rows: torch.Tensor
    inputs: Tensors
    teacher: Tensors
    labels: torch.Tensor
    labelled: torch.Tensor
    known: Mapping[int, Tensors] = field(default_factory=dict)
    part: tuple[int, int] = (1, 1)

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
    lengths: torch.Tensor | None = None,
) -> Iterator[Batch]:
    """Gives the batches of one epoch from batch `start` on, one of them perhaps smaller.

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
        lengths: [N], of the rows in tokens (`token_lengths`): batches are then of rows of similar length. The shuffled
            rows are cut into windows of 50 batches, each window is sorted by length, and the batches are shuffled; every
            row comes as often as without.

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
    if lengths is not None and len(lengths) != len(split):
        raise DataError(f"lengths: {len(lengths)} for a split of {len(split)} rows; take those of this split's view")
    order = _order(split, batch_size, np.random.default_rng([seed, epoch]), labelled_share, lengths)
    return _batches(view, teacher, split, order[start:])


def count_batches(split: Split, batch_size: int, labelled_share: float | None = None) -> int:
    """Batches of one epoch of `batches` with these arguments."""
    return len(_order(split, batch_size, np.random.default_rng(0), labelled_share))


def token_lengths(view: Tensors) -> torch.Tensor | None:
    """Tokens of each row [N] of a student's view; None where it has no `attention_mask`: images and ratings have none."""
    mask = view.get("attention_mask")
    return None if mask is None else mask.ne(0).sum(1)


def _order(
    split: Split,
    batch_size: int,
    rng: np.random.Generator,
    labelled_share: float | None,
    lengths: torch.Tensor | None = None,
) -> list[torch.Tensor]:
    """The rows of each batch of an epoch."""
    order = _shuffled(split, batch_size, rng, labelled_share, lengths)
    return order if lengths is None else [order[at] for at in rng.permutation(len(order))]


def _shuffled(
    split: Split,
    batch_size: int,
    rng: np.random.Generator,
    labelled_share: float | None,
    lengths: torch.Tensor | None,
) -> list[torch.Tensor]:
    """The rows of each batch: in a shuffled order, which `lengths` sorts within windows."""
    labelled, unlabelled = (np.flatnonzero(split.labelled.numpy() == wanted) for wanted in (True, False))
    if labelled_share == 1:
        return _cut_rows(rng.permutation(labelled), batch_size, lengths)
    if labelled_share is None or not len(labelled) or not len(unlabelled):
        return _cut_rows(rng.permutation(len(split)), batch_size, lengths)
    count = min(round(batch_size * labelled_share), batch_size - 1)
    others = _cut_rows(rng.permutation(unlabelled), batch_size - count, lengths)
    if not count:
        return others
    rounds = -(-len(others) * count // len(labelled))
    taught = np.concatenate([rng.permutation(labelled) for _ in range(max(1, rounds))])[: len(others) * count]
    return [torch.cat(pair) for pair in zip(_cut_rows(taught, count, lengths), others, strict=True)]


def _cut_rows(rows: np.ndarray, size: int, lengths: torch.Tensor | None) -> list[torch.Tensor]:
    """Rows in pieces of `size`, the last one perhaps smaller; sorted by length within each window of pieces, if given.

    Two lists that are cut into as many pieces have their short rows in the same ones.
    """
    order = torch.from_numpy(rows)
    if lengths is not None:
        windows = torch.split(order, size * _WINDOW)
        order = torch.cat([window[lengths[window].argsort(stable=True)] for window in windows])
    return list(torch.split(order, size))


def _batches(view: Tensors, teacher: Tensors, split: Split, order: Sequence[torch.Tensor]) -> Iterator[Batch]:
    for rows in order:
        inputs = _take(view, rows)
        labels = inputs.pop(TOKEN_LABELS, split.labels[rows])
        yield Batch(rows, inputs, _take(teacher, rows), labels, split.labelled[rows])


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
            found[port] = pack_texts([str(text) for text in split.teacher])
        elif port == "image" and isinstance(split.teacher, torch.Tensor):
            found[port] = split.teacher
        else:
            column = split.columns[port]
            assert isinstance(column, torch.Tensor), "teacher_ports names columns of numbers only"
            found[port] = column[:, None]
    return found


def pack_texts(texts: Sequence[str]) -> torch.Tensor:
    """The port `text` of N texts: [N, bytes] uint8, UTF-8 padded with zeros and cut after 2048 bytes."""
    return _pad([_cut(text) for text in texts])


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
