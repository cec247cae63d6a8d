"""The development split that a selector's reward is measured on, off the labelled training rows; knows no student."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from task_data import Split
from teaching_protocol.errors import DataError

__all__ = ["hold_out"]


def hold_out(train: Split, share: float, seed: int) -> tuple[Split, Split]:
    """Divides the training rows into those to train on and a development split; each keeps its rows' order.

    The development rows are labelled, drawn by the seed and, for classes, in proportion to them: one at least of each
    class, and one at least of each class stays to be trained on. Ours.

    Args:
        train: the training rows, labelled or not.
        share: part of the labelled ones to hold out, between 0 and 1.
        seed: of the draw.

    Raises:
        DataError: no row would be held out.
    """
    draw = torch.Generator().manual_seed(seed)
    rows = train.labelled.nonzero().squeeze(1)
    held: list[torch.Tensor] = []
    if train.labels.is_floating_point():
        held.append(_drawn(rows, round(share * len(rows)), draw))
    else:
        for label in torch.unique(train.labels[rows]):
            members = rows[train.labels[rows] == label]
            held.append(_drawn(members, max(1, round(share * len(members))), draw))
    chosen = torch.cat(held).sort().values if held else rows
    if not len(chosen):
        raise DataError(
            f"the development split would be empty: {len(rows)} labelled training rows and a share of {share} leave "
            "none for it; raise data.labelled or method.selection.learning.development_share"
        )
    rest = torch.ones(len(train), dtype=torch.bool)
    rest[chosen] = False
    return _rows(train, rest.nonzero().squeeze(1)), _rows(train, chosen)


def _drawn(rows: torch.Tensor, count: int, draw: torch.Generator) -> torch.Tensor:
    """`count` of the rows, but never the last one."""
    return rows[torch.randperm(len(rows), generator=draw)][: max(0, min(count, len(rows) - 1))]


def _rows(split: Split, rows: torch.Tensor) -> Split:
    columns = {name: _taken(column, rows) for name, column in split.columns.items()}
    taken = _taken(split.teacher, rows)
    return replace(split, columns=columns, teacher=taken, labels=split.labels[rows], labelled=split.labelled[rows])


def _taken(column: Sequence[str] | torch.Tensor, rows: torch.Tensor) -> Sequence[str] | torch.Tensor:
    return column[rows] if isinstance(column, torch.Tensor) else [column[row] for row in rows.tolist()]
