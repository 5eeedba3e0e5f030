"""Confidence intervals and paired tests over users, by scipy's bootstrap and permutation test."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from .metrics import pooled_auc_of_sample

# Units in the last place by which the same value, computed in two ways, may differ
_ROUNDING = 8


@dataclass(frozen=True)
class Interval:
    """A mean and its confidence interval.

    Args:
        mean: The mean.
        low: Lower end of the interval.
        high: Upper end of the interval.

    Example:
        >>> print(Interval(0.5, low=0.4, high=0.6))
        0.500 [0.400, 0.600]
    """

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        """Return the mean and, in brackets, the interval."""
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class Difference(Interval):
    """A mean difference of two rankers with its confidence interval and the p-value of no difference.

    Args:
        p_value: The p-value.

    Example:
        >>> Difference(0.1, low=0.05, high=0.15, p_value=0.003).p_value
        0.003
    """

    p_value: float


def bootstrap_mean(
    values: np.ndarray, *, confidence: float = 0.95, n_resamples: int = 10_000, seed: int = 0
) -> Interval:
    """Return the mean over users with its percentile bootstrap interval.

    For two models on the same users, pass the differences of their values per user: that is the paired bootstrap.

    Args:
        values: One value per user, (U,).
        confidence: Confidence level of the interval, between 0 and 1.
        n_resamples: Number of resamples of the users.
        seed: Seed of the resampling.

    Raises:
        ValueError: There are fewer than two users, or the confidence level is not between 0 and 1.

    Example:
        >>> print(bootstrap_mean(np.array([0.0, 1.0, 1.0, 1.0])))
        0.750 [0.250, 1.000]
    """
    result = _bootstrap((values,), np.mean, confidence=confidence, n_resamples=n_resamples, seed=seed, batch=1_000)
    return Interval(float(np.mean(values)), *result)


def paired_difference(
    ours: np.ndarray, theirs: np.ndarray, *, confidence: float = 0.95, n_resamples: int = 9_999, seed: int = 0
) -> Difference:
    """Return the mean difference of two rankers over the same users, with bootstrap interval and permutation test.

    The test asks how often differences with random signs have a mean as far from 0: exactly where the users are so few
    that all signs can be tried, else on `n_resamples` draws, so that no p-value is below `2 / (n_resamples + 1)`. A
    difference that is no more than rounding (8 units in the last place of the larger value) counts as 0.

    Args:
        ours: One value per user, (U,).
        theirs: The other ranker's values, (U,).
        confidence: Confidence level of the interval, between 0 and 1.
        n_resamples: Number of draws of the test.
        seed: Seed of both.

    Raises:
        ValueError: The rankers have values of different numbers of users, or of fewer than two, or the confidence
            level is not between 0 and 1.

    Example:
        The differences are 1, 1, 0, 0 and 1. Of the eight ways to sign the three ones, two have a mean of 0.6 or -0.6.

        >>> difference = paired_difference(np.array([1.0, 1, 1, 0, 1]), np.array([0.0, 0, 1, 0, 0]))
        >>> round(difference.mean, 3), difference.p_value
        (0.6, 0.25)
    """
    if ours.shape != theirs.shape:
        raise ValueError(f"A paired difference needs the same users; there are {len(ours)} and {len(theirs)} values.")
    differences = ours - theirs
    rounding = _ROUNDING * np.spacing(np.maximum(np.abs(ours), np.abs(theirs)))
    differences = np.where(np.abs(differences) <= rounding, 0.0, differences)
    interval = bootstrap_mean(differences, confidence=confidence, seed=seed)
    test = stats.permutation_test(
        (differences,),
        np.mean,
        permutation_type="samples",  # of one sample: flips signs
        n_resamples=n_resamples,
        batch=1_000,
        rng=np.random.default_rng(seed),
    )
    return Difference(interval.mean, interval.low, interval.high, float(test.pvalue))


def bootstrap_pooled_auc(
    scores: Sequence[np.ndarray],
    positives: Sequence[int],
    *,
    confidence: float = 0.95,
    n_resamples: int = 1_000,
    seed: int = 0,
) -> Interval:
    """Return the pooled AUC with its percentile bootstrap interval over users.

    Args:
        scores: One score per candidate, (candidates,) for each user.
        positives: Index of the relevant candidate of each user.
        confidence: Confidence level of the interval, between 0 and 1.
        n_resamples: Number of resamples of the users.
        seed: Seed of the resampling.

    Raises:
        ValueError: As in [`Ranks.from_scores`], there are fewer than two users, or the confidence level is not between
            0 and 1.
    """
    statistic = pooled_auc_of_sample(scores, positives)
    users = np.arange(len(scores))
    result = _bootstrap(
        (users,), statistic, confidence=confidence, n_resamples=n_resamples, seed=seed, vectorized=False
    )
    return Interval(statistic(users), *result)


def _bootstrap(
    sample: tuple[np.ndarray],
    statistic: Callable[..., float],
    *,
    confidence: float,
    n_resamples: int,
    seed: int,
    **options: int | bool,
) -> tuple[float, float]:
    """Return the ends of the percentile bootstrap interval."""
    if not 0 < confidence < 1:
        raise ValueError(f"The confidence level must be between 0 and 1, as 0.95 is; it is {confidence}.")
    if len(sample[0]) < 2:
        raise ValueError(f"A bootstrap over users needs at least two users, not {len(sample[0])}.")
    low, high = stats.bootstrap(
        sample,
        statistic,
        confidence_level=confidence,
        n_resamples=n_resamples,
        method="percentile",
        rng=np.random.default_rng(seed),
        **options,  # `batch` bounds the memory: so many resamples x U values at a time
    ).confidence_interval
    return float(low), float(high)
