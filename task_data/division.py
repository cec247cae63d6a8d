"""Which row goes to which split: drawn by a seed, without leakage; knows keys and classes, not what rows hold."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from task_data.config import DataConfig
from teaching_protocol.errors import DataError

__all__ = ["Division", "Integers", "Part", "divide"]

Integers = NDArray[np.int64]

Part = Literal["train", "validation", "test"]
"""Where the data set itself puts a row. A data set without parts of its own is all `train`."""


@dataclass(frozen=True)
class Division:
    """Row numbers of the three splits, each ascending; `labelled` [len(train)] bool."""

    train: Integers
    labelled: NDArray[np.bool_]
    validation: Integers
    test: Integers


def divide(
    keys: Sequence[Hashable], parts: Sequence[Part], config: DataConfig, classes: Integers | None = None
) -> Division:
    """Draws the splits of a data set of N rows. Ours; no paper prescribes it.

    Rows with equal keys are the same example: one that is in the data set's own test part is dropped from the
    rest, one in its own validation part from train, and of several in train one is kept. So no example is in
    two splits. With classes every draw is in proportion to them, and each class keeps a labelled row. The test
    rows do not depend on `validation`, `labelled` and `unlabelled`, the validation rows not on the last two,
    and fewer labelled rows are a subset of more.

    Args:
        keys: [N], what makes two rows the same example.
        parts: [N], the data set's own part of each row.
        config: sizes and seed.
        classes: [N] class numbers, or None for a regression.

    Raises:
        DataError: fewer rows than asked, or fewer labelled rows than classes.
    """
    order = np.random.default_rng(config.seed).permutation(len(keys)).astype(np.int64)
    own = np.asarray(parts)[order]
    train, validation, test = (
        _in_proportion(order[own == part], classes)[: config.max_rows] for part in ("train", "validation", "test")
    )
    validation = _distinct(keys, validation, without=test)
    pool = _distinct(keys, train, without=[*test, *validation])
    kept, free = _one_of_each(pool, classes)
    if len(test):
        test = test if config.test is None else _take(test, config.test, "test", config)[0]
    else:
        test, free = _take(free, config.test or max(1, len(pool) // 5), "test", config)
    if len(validation):
        validation = _take(validation, config.validation, "validation", config)[0]
    else:
        validation, free = _take(free, config.validation, "validation", config)
    train, labelled = _training_rows(np.concatenate([kept, free]), len(kept), classes, config)
    return Division(train, labelled, np.sort(validation), np.sort(test))


def _training_rows(
    rows: Integers, classes_kept: int, classes: Integers | None, config: DataConfig
) -> tuple[Integers, NDArray[np.bool_]]:
    rows = _in_proportion(rows, classes)
    labelled = len(rows) if config.labelled is None else config.labelled
    if labelled < classes_kept:
        raise DataError(
            f"{config.name}: labelled is {labelled}, but each of the {classes_kept} classes needs a labelled row; "
            f"set labelled to {classes_kept} or more"
        )
    labelled_rows, rest = _take(rows, labelled, "labelled", config)
    if config.labelled is not None and config.unlabelled is not None:
        rest = _take(rest, config.unlabelled, "unlabelled", config)[0]
    train = np.sort(np.concatenate([labelled_rows, rest]))
    return train, np.isin(train, labelled_rows)


def _take(rows: Integers, count: int, field: str, config: DataConfig) -> tuple[Integers, Integers]:
    if count > len(rows):
        raise DataError(
            f"{config.name}: {field} asks for {count} rows, but {len(rows)} distinct ones are left for it "
            f"(duplicates, and training rows that are also tested or validated on, are dropped); ask for fewer rows"
        )
    return rows[:count], rows[count:]


def _distinct(keys: Sequence[Hashable], rows: Integers, without: Iterable[int]) -> Integers:
    seen = {keys[row] for row in without}
    kept: list[int] = []
    for row in rows.tolist():
        if keys[row] not in seen:
            seen.add(keys[row])
            kept.append(row)
    return np.asarray(kept, dtype=np.int64)


def _one_of_each(rows: Integers, classes: Integers | None) -> tuple[Integers, Integers]:
    """The first row of each class, which stays in train, and the other rows."""
    if classes is None:
        return rows[:0], rows
    first = np.zeros(len(rows), dtype=bool)
    first[np.unique(classes[rows], return_index=True)[1]] = True
    return rows[first], rows[~first]


def _in_proportion(rows: Integers, classes: Integers | None) -> Integers:
    """Reorders rows so that each class comes once first, and every longer prefix holds them in proportion."""
    if classes is None:
        return rows
    place = np.empty(len(rows))
    for number in np.unique(classes[rows]):
        members = np.flatnonzero(classes[rows] == number)
        place[members] = (np.arange(len(members)) + 0.5) / len(members)
        place[members[0]] = 0.0
    return rows[np.argsort(place, kind="stable")]
