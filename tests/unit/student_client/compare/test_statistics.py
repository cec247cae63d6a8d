from __future__ import annotations

import itertools
import math
import random

import pytest

from student_client.compare.statistics import gap_recovered, mean_interval, paired_gain, summarise


def every_resample(values: list[float]) -> tuple[float, float]:
    """The percentile interval over all n^n resamples, written out."""
    means = sorted(sum(drawn) / len(drawn) for drawn in itertools.product(values, repeat=len(values)))
    return means[round(0.025 * (len(means) - 1))], means[round(0.975 * (len(means) - 1))]


@pytest.mark.parametrize("seed", range(3))
def test_the_interval_is_that_of_all_resamples(seed: int) -> None:
    values = [random.Random(seed).gauss(0.8, 0.02) for _ in range(5)]
    low, high = mean_interval(values) or (math.nan, math.nan)
    expected = every_resample(values)
    assert low == pytest.approx(expected[0], abs=1e-3)
    assert high == pytest.approx(expected[1], abs=1e-3)


def test_the_interval_is_the_same_every_time() -> None:
    assert mean_interval([0.1, 0.5, 0.9]) == mean_interval([0.1, 0.5, 0.9])


def test_it_pairs_by_seed_and_leaves_out_what_has_no_pair() -> None:
    # unpaired the difference of the means is 0; paired every seed gains 0.1
    gain = paired_gain({0: 0.6, 1: 0.7, 2: 0.8, 9: 0.1}, {2: 0.7, 1: 0.6, 0: 0.5}, lower_is_better=False)
    assert gain is not None
    assert gain.n == 3
    assert gain.mean == pytest.approx(0.1)
    assert (gain.low, gain.high) == (pytest.approx(0.1), pytest.approx(0.1))
    assert gain.is_clear


def test_above_zero_is_better_whatever_the_metric() -> None:
    small, large = {0: 0.9, 1: 0.8}, {0: 1.0, 1: 1.0}
    for values, baseline, lower_is_better, sign in (
        (small, large, True, 1),
        (large, small, True, -1),
        (small, large, False, -1),
        (large, small, False, 1),
    ):
        gain = paired_gain(values, baseline, lower_is_better)
        assert gain is not None
        assert gain.mean == pytest.approx(sign * 0.15)
        assert gain.low is not None
        assert gain.high is not None
        assert gain.low <= gain.mean <= gain.high


def test_a_single_pair_has_no_interval_and_is_never_clear() -> None:
    gain = paired_gain({0: 0.9}, {0: 0.1}, lower_is_better=False)
    assert gain is not None
    assert (gain.low, gain.high, gain.is_clear) == (None, None, False)
    assert paired_gain({0: 0.9}, {1: 0.1}, lower_is_better=False) is None


def test_an_interval_with_zero_in_it_is_not_clear() -> None:
    gain = paired_gain({0: 0.6, 1: 0.4}, {0: 0.5, 1: 0.5}, lower_is_better=False)
    assert gain is not None
    assert not gain.is_clear


def test_mean_and_sample_deviation() -> None:
    found = summarise([1.0, 2.0, 6.0])
    assert found is not None
    assert (found.n, found.mean) == (3, 3.0)
    assert found.deviation == pytest.approx(math.sqrt((4 + 1 + 9) / 2))
    alone = summarise([0.5])
    assert alone is not None
    assert alone.deviation is None
    assert summarise([]) is None


@pytest.mark.parametrize(
    ("distilled", "plain", "teacher", "lower_is_better", "expected"),
    [
        (0.8, 0.7, 0.9, False, 0.5),
        (0.95, 0.7, 0.9, False, 1.25),
        (0.6, 0.7, 0.9, False, -0.5),
        (0.95, 1.0, 0.9, True, 0.5),  # an error that fell half of the way
        (1.1, 1.0, 0.9, True, -1.0),
        (0.8, 0.9, 0.7, False, None),  # a teacher worse than the plain student leaves no gap
        (0.8, 0.9, 0.9, False, None),
        (0.8, 0.7, 0.9, True, None),
    ],
)
def test_gap_recovered(
    distilled: float, plain: float, teacher: float, lower_is_better: bool, expected: float | None
) -> None:
    found = gap_recovered(distilled, plain, teacher, lower_is_better)
    assert found == (None if expected is None else pytest.approx(expected))
