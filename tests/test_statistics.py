"""Intervals and tests against known answers."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from math import comb, sqrt

import numpy as np
import pytest
from scipy.stats import binomtest

from fnabench.scores import SampleScores
from fnabench.statistics import compare, estimate, holm, median_ratio


def ids(count: int) -> tuple[str, ...]:
    return tuple(f"{position:05d}" for position in range(count))


def binary(count: int, right: int) -> SampleScores:
    return SampleScores.mean_of((np.arange(count) < right).astype(float), ids(count))


def width(scores: SampleScores) -> float:
    interval = estimate(scores)
    return interval.high - interval.low


def test_the_interval_of_a_share_is_the_textbook_one() -> None:
    interval = estimate(binary(400, 300))
    half = 1.96 * sqrt(0.75 * 0.25 / 400)
    assert interval.value == 0.75
    assert interval.low == pytest.approx(0.75 - half, abs=0.006)
    assert interval.high == pytest.approx(0.75 + half, abs=0.006)


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    held = 0
    for _ in range(60):
        sample = generator.normal(3.0, 1.0, 80)
        interval = estimate(SampleScores.mean_of(sample, ids(80)))
        held += interval.low <= 3.0 <= interval.high
    assert held / 60 > 0.85


def test_constant_scores_have_an_interval_without_width() -> None:
    interval = estimate(SampleScores.mean_of(np.full(30, 0.4), ids(30)))
    assert interval.value == pytest.approx(0.4)
    assert interval.low == pytest.approx(0.4)
    assert interval.high == pytest.approx(0.4)


def test_copies_of_a_sample_add_no_certainty_when_they_share_a_cluster() -> None:
    once = np.random.default_rng(1).random(100)
    four_times = np.repeat(once, 4)
    images = tuple(f"image {position // 4:03d}" for position in range(400))
    clustered = width(SampleScores.mean_of(four_times, ids(400), images))
    assert clustered == pytest.approx(width(SampleScores.mean_of(once, ids(100))), rel=0.1)
    assert clustered > 1.7 * width(SampleScores.mean_of(four_times, ids(400)))


def test_the_order_of_clusters_and_their_names_do_not_matter_to_the_width() -> None:
    scores = np.random.default_rng(2).random(60)
    numbered = tuple(str(position % 7) for position in range(60))
    named = tuple("abcdefg"[position % 7] for position in range(60))
    one, other = (width(SampleScores.mean_of(scores, ids(60), clusters)) for clusters in (numbered, named))
    assert one == other


def test_clusters_of_different_size_are_drawn_whole() -> None:
    # One image with nine captions scoring 1 and one with a single caption scoring 0: the mean is 0, 0.9 or 1.
    scores = SampleScores.mean_of(np.array([1.0] * 9 + [0.0]), ids(10), ("a",) * 9 + ("b",))
    interval = estimate(scores)
    assert (interval.value, interval.low, interval.high) == (0.9, 0.0, 1.0)


def test_the_interval_is_the_same_each_time_and_moves_with_the_seed() -> None:
    scores = binary(100, 60)
    assert estimate(scores, seed=1) == estimate(scores, seed=1)
    others = [estimate(SampleScores.mean_of(np.random.default_rng(5).random(50), ids(50)), seed=s) for s in range(4)]
    assert len({(other.low, other.high) for other in others}) > 1


def test_mean_iou_has_an_interval_around_its_value() -> None:
    generator = np.random.default_rng(3)
    union = generator.integers(1, 50, (80, 4)).astype(float)
    union[:, 3] = 0  # a class that does not occur
    intersection = union * generator.random((80, 4))
    scores = SampleScores(ids=ids(80), clusters=ids(80), numerator=intersection, denominator=union)
    interval = estimate(scores)
    assert scores.value == pytest.approx((intersection.sum(0)[:3] / union.sum(0)[:3]).mean())
    assert interval.low < interval.value < interval.high
    assert interval.high - interval.low < 0.15


# Two runs on the same samples


def test_two_identical_runs_differ_by_exactly_nothing() -> None:
    scores = np.random.default_rng(4).random(100)
    predictions = np.arange(100)
    one, other = (SampleScores.mean_of(scores, ids(100), predictions=predictions) for _ in range(2))
    comparison = compare(one, other)
    assert (comparison.difference.value, comparison.difference.low, comparison.difference.high) == (0, 0, 0)
    assert comparison.agreement == 1


def test_the_paired_interval_is_narrower_than_the_unpaired_one() -> None:
    exact = np.random.default_rng(5).random(200)
    variant = exact - 0.01 + 0.01 * np.random.default_rng(6).standard_normal(200)
    comparison = compare(SampleScores.mean_of(variant, ids(200)), SampleScores.mean_of(exact, ids(200)))
    difference = comparison.difference
    assert difference.value == pytest.approx(float(np.mean(variant - exact)))
    assert difference.low < difference.value < difference.high < 0
    assert difference.high - difference.low < 0.1 * width(SampleScores.mean_of(exact, ids(200)))
    half = 1.96 * np.std(variant - exact) / sqrt(200)
    assert difference.high - difference.value == pytest.approx(half, rel=0.2)


def test_a_constant_shift_is_certain() -> None:
    exact = np.random.default_rng(7).random(50)
    comparison = compare(SampleScores.mean_of(exact - 0.25, ids(50)), SampleScores.mean_of(exact, ids(50)))
    assert comparison.difference.low == pytest.approx(-0.25)
    assert comparison.difference.high == pytest.approx(-0.25)


@pytest.mark.parametrize("change", ["ids", "clusters", "order"])
def test_runs_on_different_samples_are_not_compared(change: str) -> None:
    exact = SampleScores.mean_of(np.ones(4), ("a", "b", "c", "d"), ("x", "x", "y", "y"))
    names = {"ids": ("a", "b", "c", "e"), "order": ("b", "a", "c", "d")}.get(change, exact.ids)
    clusters = ("x", "y", "y", "y") if change == "clusters" else exact.clusters
    with pytest.raises(ValueError, match="did not see the same samples"):
        compare(SampleScores.mean_of(np.ones(4), names, clusters), exact)


def paired(only_variant: int, only_exact: int, both: int = 30) -> tuple[SampleScores, SampleScores]:
    variant = np.array([1.0] * only_variant + [0.0] * only_exact + [1.0] * both)
    exact = np.array([0.0] * only_variant + [1.0] * only_exact + [1.0] * both)
    return SampleScores.mean_of(variant, ids(len(variant))), SampleScores.mean_of(exact, ids(len(exact)))


@pytest.mark.parametrize(("gained", "lost"), [(5, 15), (15, 5), (0, 8), (3, 4)])
def test_mcnemar_is_the_exact_binomial_test_of_the_changes(gained: int, lost: int) -> None:
    tail = sum(comb(gained + lost, k) for k in range(min(gained, lost) + 1)) / 2 ** (gained + lost)
    p_value = compare(*paired(gained, lost)).p_value
    assert p_value == pytest.approx(min(1.0, 2 * tail))
    assert p_value == pytest.approx(binomtest(gained, gained + lost, 0.5).pvalue)


def test_samples_of_a_cluster_count_as_one_change() -> None:
    """Five captions an image: against all 2^n sign patterns of the images' sums."""
    differences = np.array([3, -1, 2, 0, -1, 4])
    exact = np.array([[0.0] * max(d, 0) + [1.0] * max(-d, 0) + [1.0] * (5 - abs(d)) for d in differences]).ravel()
    variant = np.array([[1.0] * max(d, 0) + [0.0] * max(-d, 0) + [1.0] * (5 - abs(d)) for d in differences]).ravel()
    clusters = tuple(str(image) for image in range(6) for _ in range(5))
    runs = [SampleScores.mean_of(values, ids(30), clusters) for values in (variant, exact)]
    sums = [np.dot(signs, differences) for signs in product((-1, 1), repeat=6)]
    expected = np.mean([abs(each) >= 7 for each in sums])
    assert compare(*runs).p_value == pytest.approx(expected)
    assert compare(*(replace(run, clusters=run.ids) for run in runs)).p_value < expected  # as if they were independent


def test_mcnemar_without_any_change_is_certain_of_nothing() -> None:
    assert compare(*paired(0, 0)).p_value == 1


def test_mcnemar_is_for_scores_of_0_and_1_only() -> None:
    ones = SampleScores.mean_of(np.ones(10), ids(10))
    partial = SampleScores.mean_of(np.full(10, 1 / 3), ids(10))
    assert compare(partial, ones).p_value is None
    assert compare(ones, partial).p_value is None
    columns = SampleScores(ids=ids(10), clusters=ids(10), numerator=np.ones((10, 2)), denominator=np.ones((10, 2)))
    assert compare(columns, columns).p_value is None
    pixels = SampleScores(ids=ids(10), clusters=ids(10), numerator=np.ones((10, 1)), denominator=np.full((10, 1), 9.0))
    assert compare(pixels, pixels).p_value is None


def test_agreement_is_the_share_of_equal_predictions() -> None:
    def run(predictions: list[int]) -> SampleScores:
        return SampleScores.mean_of(np.ones(4), ids(4), predictions=np.array(predictions))

    assert compare(run([1, 2, 3, 4]), run([1, 2, 9, 4])).agreement == 0.75
    assert compare(run([1, 2, 3, 4]), binary(4, 4)).agreement is None


# Ratios and families of tests


def test_the_median_ratio_has_its_value_inside_its_interval() -> None:
    generator = np.random.default_rng(8)
    slow = list(20 + generator.normal(0, 0.3, 15))
    fast = list(10 + generator.normal(0, 0.3, 15))
    interval = median_ratio(slow, fast)
    assert interval.value == float(np.median(np.divide(slow, fast)))
    assert interval.low < 2.0 < interval.high
    assert interval.low <= interval.value <= interval.high
    assert interval.high - interval.low < 0.2


def test_a_drift_shared_by_both_cancels_in_the_ratio() -> None:
    drift = np.random.default_rng(9).uniform(1, 3, 15)
    interval = median_ratio(list(20 * drift), list(10 * drift))
    assert (interval.value, interval.low, interval.high) == pytest.approx((2, 2, 2))


def test_one_outlier_hardly_moves_the_ratio() -> None:
    interval = median_ratio([20.0] * 14 + [500.0], [10.0] * 15)
    assert (interval.value, interval.low, interval.high) == (2, 2, 2)


@pytest.mark.parametrize(
    ("p_values", "adjusted"),
    [
        ([0.01, 0.04, 0.03], [0.03, 0.06, 0.06]),
        ([0.04, 0.01, 0.03], [0.06, 0.03, 0.06]),
        ([0.5, 0.6], [1.0, 1.0]),
        ([0.02], [0.02]),
        ([0.01, 0.02, 0.03, 0.005], [0.03, 0.04, 0.04, 0.02]),
        ([], []),
    ],
)
def test_holm_multiplies_step_by_step_and_never_falls(p_values: list[float], adjusted: list[float]) -> None:
    assert holm(p_values) == pytest.approx(adjusted)
