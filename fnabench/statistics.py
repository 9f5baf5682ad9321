"""How sure a number is: intervals by bootstrap over clusters, and tests for paired scores."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fnabench.scores import SampleScores, ratio_of_sums

if TYPE_CHECKING:
    from numpy.typing import NDArray

CONFIDENCE = 0.95
NUM_RESAMPLES = 5_000
CHUNK = 250
"""Resamples drawn at a time, so that memory stays small for large data sets."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A value with the ends of its 95 % interval."""

    value: float
    low: float
    high: float

    def __format__(self, form: str) -> str:
        """All three numbers in the given form, ".3f" unless told."""
        value, low, high = (f"{end:{form or '.3f'}}" for end in (self.value, self.low, self.high))
        return f"{value} [{low}, {high}]"

    def times(self, factor: float) -> Estimate:
        """The same in other units."""
        return Estimate(value=factor * self.value, low=factor * self.low, high=factor * self.high)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A run against its exact twin on the same samples."""

    difference: Estimate
    """Variant minus exact."""
    p_value: float | None
    """McNemar's exact test where each score is 0 or 1; samples that share a cluster change together."""
    agreement: float | None
    """Share of the samples for which both predict the same."""


def estimate(scores: SampleScores, seed: int = 0) -> Estimate:
    """The metric with its interval, by bootstrap over clusters."""
    resampled = np.concatenate(list(_resample(scores, seed)))
    return _interval(scores.value, resampled)


def compare(variant: SampleScores, exact: SampleScores, seed: int = 0) -> Comparison:
    """The paired comparison of two runs on the same samples, each resample drawn for both."""
    if variant.ids != exact.ids or variant.clusters != exact.clusters:
        raise ValueError("the two runs did not see the same samples in the same order")
    pairs = zip(_resample(variant, seed), _resample(exact, seed), strict=True)
    differences = np.concatenate([ours - theirs for ours, theirs in pairs])
    agreement = None
    if variant.predictions is not None and exact.predictions is not None:
        agreement = float(np.mean(variant.predictions == exact.predictions))
    return Comparison(
        difference=_interval(variant.value - exact.value, differences),
        p_value=_sign_flips(variant, exact),
        agreement=agreement,
    )


def median_ratio(numerator: Sequence[float], denominator: Sequence[float], seed: int = 0) -> Estimate:
    """The median of the ratios of paired repeats, with the interval from resampling the pairs.

    A pair was timed within one round, so what slows the machine for a while slows both and leaves their ratio alone.
    """
    ratios = np.asarray(numerator) / np.asarray(denominator)
    draws = np.random.default_rng(seed).integers(len(ratios), size=(NUM_RESAMPLES, len(ratios)))
    return _interval(float(np.median(ratios)), np.median(ratios[draws], axis=1))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction for a family of tests, in the given order."""
    order = np.argsort(p_values)
    adjusted = np.empty(len(p_values))
    largest = 0.0
    for rank, position in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[position]))
        adjusted[position] = largest
    return [float(p) for p in adjusted]


def _resample(scores: SampleScores, seed: int) -> Iterator[NDArray[np.float64]]:
    """The metric on resamples of whole clusters, a chunk at a time; the same draws for the same clusters and seed."""
    num_clusters, cluster_of = _clusters(scores)
    numerator = _sum_by_cluster(scores.numerator, cluster_of, num_clusters)
    denominator = _sum_by_cluster(scores.denominator, cluster_of, num_clusters)
    generator = np.random.default_rng(seed)
    start = num_clusters * np.arange(CHUNK)[:, None]
    for _ in range(NUM_RESAMPLES // CHUNK):
        drawn = start + generator.integers(num_clusters, size=(CHUNK, num_clusters))
        weights = np.bincount(drawn.ravel(), minlength=start.size * num_clusters).reshape(CHUNK, -1).astype(float)
        yield ratio_of_sums(weights @ numerator, weights @ denominator)


def _clusters(scores: SampleScores) -> tuple[int, NDArray[np.intp]]:
    """How many there are, and which one each sample belongs to."""
    names, cluster_of = np.unique(np.array(scores.clusters), return_inverse=True)
    return len(names), cluster_of


def _sum_by_cluster(
    values: NDArray[np.float64], cluster_of: NDArray[np.intp], num_clusters: int
) -> NDArray[np.float64]:
    sums = np.zeros((num_clusters, values.shape[1]))
    np.add.at(sums, cluster_of, values)
    return sums


def _interval(value: float, resampled: NDArray[np.float64]) -> Estimate:
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail])
    return Estimate(value=value, low=float(low), high=float(high))


def _sign_flips(variant: SampleScores, exact: SampleScores) -> float | None:
    """Exact two-sided test that each cluster's difference might as well have the other sign; None unless each sample
    scores 0 or 1. With one sample a cluster this is McNemar's exact test."""
    scores = (variant.numerator, exact.numerator)
    if any(s.shape[1] != 1 or not np.isin(s, (0, 1)).all() for s in scores) or (variant.denominator != 1).any():
        return None
    num_clusters, cluster_of = _clusters(variant)
    differences = _sum_by_cluster(scores[0] - scores[1], cluster_of, num_clusters)[:, 0].astype(int)
    steps = np.abs(differences[differences != 0])
    reach = int(steps.sum())
    chance = np.zeros(2 * reach + 1)  # of every sum that signs can give, from -reach on
    chance[reach] = 1
    for step in steps:
        chance = (np.roll(chance, step) + np.roll(chance, -step)) / 2
    as_far = np.abs(np.arange(-reach, reach + 1)) >= abs(differences.sum())
    return min(1.0, float(chance[as_far].sum()))
