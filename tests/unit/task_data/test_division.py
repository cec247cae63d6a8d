from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from task_data.config import DataConfig
from task_data.division import Part, divide
from teaching_protocol.errors import DataError

PARTS: list[Part] = ["train", "validation", "test"]
rows = st.lists(
    st.tuples(st.integers(0, 60), st.integers(0, 3), st.sampled_from([*["train"] * 6, "validation", "test"])),
    min_size=20,
    max_size=80,
)


@settings(max_examples=150, deadline=None)
@given(
    rows=rows,
    seed=st.integers(0, 5),
    labelled=st.none() | st.integers(1, 10),
    unlabelled=st.none() | st.integers(0, 6),
    validation=st.integers(1, 4),
    test=st.none() | st.integers(1, 4),
    classed=st.booleans(),
)
def test_splits_are_disjoint_seeded_as_asked_and_without_leakage(
    rows: list[tuple[int, int, Part]],
    seed: int,
    labelled: int | None,
    unlabelled: int | None,
    validation: int,
    test: int | None,
    classed: bool,
) -> None:
    keys, numbers, parts = (list(column) for column in zip(*rows, strict=True))
    classes = np.asarray(numbers, dtype=np.int64) if classed else None
    config = DataConfig(labelled=labelled, unlabelled=unlabelled, validation=validation, test=test, seed=seed)
    try:
        got = divide(keys, parts, config, classes)
    except DataError:  # the rows drawn are too few for the sizes drawn
        assume(False)
    splits = [got.train, got.validation, got.test]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert not {keys[row] for row in splits[one]} & {keys[row] for row in splits[other]}
    assert len({keys[row] for row in got.train}) == len(got.train)
    assert all(parts[row] == "train" for row in got.train)
    assert len(got.validation) == validation
    own_test = parts.count("test")
    assert len(got.test) == (test or own_test or len(got.test))
    if labelled is None:
        assert got.labelled.all()
    else:
        assert got.labelled.sum() == labelled
        assert unlabelled is None or len(got.train) == labelled + unlabelled
    if classed:
        assert {numbers[row] for row in got.train} == {numbers[row] for row in got.train[got.labelled]}
    again = divide(keys, parts, config, classes)
    assert all(np.array_equal(a, b) for a, b in zip(splits, [again.train, again.validation, again.test], strict=True))
    assert np.array_equal(got.labelled, again.labelled)


def test_every_row_is_used_once_when_all_are_asked_for() -> None:
    got = divide(range(100), ["train"] * 100, DataConfig(labelled=30, unlabelled=None, validation=20, test=10))
    assert sorted([*got.train, *got.validation, *got.test]) == list(range(100))


def test_labelled_rows_are_in_proportion_and_nested_and_hold_a_rare_class() -> None:
    classes = np.asarray([0] * 150 + [1] * 49 + [2], dtype=np.int64)

    def labelled_rows(count: int) -> set[int]:
        got = divide(range(200), ["train"] * 200, DataConfig(labelled=count, unlabelled=0, validation=20), classes)
        return set(got.train[got.labelled].tolist())

    counts = Counter(classes[list(labelled_rows(40))].tolist())
    assert counts[2] == 1
    assert counts[0] == pytest.approx(30, abs=2)
    assert labelled_rows(10) < labelled_rows(40)


def test_held_out_rows_do_not_depend_on_how_many_are_labelled() -> None:
    few = divide(range(100), ["train"] * 100, DataConfig(labelled=5, unlabelled=5, validation=10))
    many = divide(range(100), ["train"] * 100, DataConfig(labelled=50, unlabelled=10, validation=10))
    assert np.array_equal(few.test, many.test)
    assert np.array_equal(few.validation, many.validation)
    assert len(few.test) == 20


def test_another_seed_draws_other_rows() -> None:
    a, b = (
        divide(range(100), ["train"] * 100, DataConfig(labelled=50, validation=10, seed=s, unlabelled=0))
        for s in (0, 1)
    )
    assert not np.array_equal(a.train, b.train)


def test_max_rows_limits_each_part_and_keeps_every_class() -> None:
    classes = np.asarray([0] * 90 + [1] * 10 + [0] * 50, dtype=np.int64)
    parts: list[Part] = ["train"] * 100
    parts += ["test"] * 50
    config = DataConfig(labelled=4, unlabelled=None, validation=5, max_rows=20)
    got = divide(range(150), parts, config, classes)
    assert len(got.train) + len(got.validation) == 20
    assert len(got.test) == 20
    assert set(classes[got.train[got.labelled]]) == {0, 1}


@pytest.mark.parametrize(
    ("settings_", "words"),
    [
        ({"labelled": 90}, "labelled asks for 90"),
        ({"labelled": 5, "unlabelled": 90}, "unlabelled asks for 90"),
        ({"validation": 101}, "validation asks for 101"),
        ({"test": 101}, "test asks for 101"),
        ({"labelled": 3}, "4 classes"),
    ],
)
def test_more_rows_than_there_are_is_refused(settings_: dict[str, int], words: str) -> None:
    classes = np.arange(100, dtype=np.int64) % 4
    config = DataConfig(**{"labelled": 10, "unlabelled": 10, "validation": 10} | settings_)
    with pytest.raises(DataError, match=words):
        divide(range(100), ["train"] * 100, config, classes)
