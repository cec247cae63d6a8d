"""Means, spreads, paired differences with bootstrap intervals, and the gap recovered; knows no run and no file."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["Difference", "Summary", "gap_recovered", "mean_interval", "paired_gain", "summarise"]

_RESAMPLES = 9999
_SEED = 0
_LEVEL = 0.95


@dataclass(frozen=True)
class Summary:
    """Mean and sample standard deviation of n numbers; the deviation of a single one is None."""

    n: int
    mean: float
    deviation: float | None


@dataclass(frozen=True)
class Difference:
    """Mean of n paired differences and its 95% bootstrap interval; a single pair has none."""

    n: int
    mean: float
    low: float | None
    high: float | None

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves zero out."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def summarise(values: Sequence[float]) -> Summary | None:
    """Mean and spread; None of nothing."""
    if not values:
        return None
    return Summary(len(values), statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)


def paired_gain(values: Mapping[int, float], baseline: Mapping[int, float], lower_is_better: bool) -> Difference | None:
    """By how much a method beats a baseline, paired by seed: above zero is better, whatever the metric.

    The interval is the percentile bootstrap of the mean over the pairs (Efron, 1979), with a fixed seed. With five
    seeds it is a rough one: it cannot be wider than the five differences.

    Args:
        values: metric by seed.
        baseline: the baseline's, likewise; seeds that only one has are left out.
        lower_is_better: whether the metric is an error.

    Returns:
        None where no seed is in both.
    """
    sign = -1.0 if lower_is_better else 1.0
    gains = [sign * (values[seed] - baseline[seed]) for seed in sorted(values.keys() & baseline.keys())]
    if not gains:
        return None
    low, high = mean_interval(gains) or (None, None)
    return Difference(len(gains), statistics.fmean(gains), low, high)


def gap_recovered(distilled: float, plain: float, teacher: float, lower_is_better: bool) -> float | None:
    """(distilled - plain) / (teacher - plain) (DiverseDistill, arXiv 2402.14035): 1 is a student as good as its teacher.

    Returns:
        None where the teacher is no better than the plain student, so that there is no gap.
    """
    gap = plain - teacher if lower_is_better else teacher - plain
    if gap <= 0:
        return None
    return (distilled - plain) / (teacher - plain)


def mean_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """95% percentile bootstrap interval of the mean, with a fixed seed; None of a single number."""
    if len(values) < 2:
        return None
    from scipy import stats  # type: ignore[import-untyped]  # here: a second to import

    found = stats.bootstrap(
        (np.asarray(values, dtype=np.float64),),
        np.mean,
        n_resamples=_RESAMPLES,
        confidence_level=_LEVEL,
        method="percentile",
        rng=np.random.default_rng(_SEED),
    ).confidence_interval
    return float(found.low), float(found.high)
