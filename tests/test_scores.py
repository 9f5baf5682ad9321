"""Scores per sample: plain means and ratios of sums, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from fnabench.errors import BadInputError
from fnabench.scores import SampleScores, Scores, ratio_of_sums

IDS = ("a", "b", "c", "d")


def test_a_plain_mean_is_the_mean_of_its_samples() -> None:
    scores = SampleScores.mean_of(np.array([1.0, 0.0, 0.5, 1.0]), IDS)
    assert scores.value == 0.625
    assert scores.clusters == IDS
    assert scores.numerator.shape == (4, 1)


def test_samples_of_a_mean_may_share_clusters() -> None:
    assert SampleScores.mean_of(np.ones(4), IDS, ("x", "x", "y", "y")).clusters == ("x", "x", "y", "y")


def test_booleans_are_scores_of_0_and_1() -> None:
    scores = SampleScores.mean_of(np.array([True, False, True, True]), IDS)
    assert scores.value == 0.75
    assert scores.numerator.dtype == np.float64


def mean_iou(intersection: list[list[float]], union: list[list[float]]) -> float:
    return SampleScores(
        ids=IDS[: len(union)], clusters=IDS[: len(union)], numerator=np.array(intersection), denominator=np.array(union)
    ).value


def test_mean_iou_is_accumulated_over_the_data_set_and_not_averaged_over_images() -> None:
    # Class 0: (1 + 30) / (10 + 40) = 0.62; class 1: (0 + 8) / (0 + 10) = 0.8.
    assert mean_iou([[1, 0], [30, 8]], [[10, 0], [40, 10]]) == pytest.approx(0.71)


def test_classes_that_do_not_occur_are_left_out_of_the_mean() -> None:
    assert mean_iou([[3, 0, 1]], [[4, 0, 4]]) == pytest.approx(0.5)
    assert mean_iou([[3, 0, 1]], [[4, 5, 4]]) == pytest.approx(1 / 3)


def test_a_ratio_is_taken_row_by_row() -> None:
    ratios = ratio_of_sums(np.array([[1.0, 2.0], [0.0, 3.0]]), np.array([[2.0, 2.0], [0.0, 4.0]]))
    np.testing.assert_allclose(ratios, [0.75, 0.75])
    assert ratio_of_sums(np.zeros(3), np.zeros(3)) == 0


@pytest.mark.parametrize("shape", [(4,), (4, 2)])
def test_predictions_become_text_of_two_dimensions(shape: tuple[int, ...]) -> None:
    given = np.arange(int(np.prod(shape))).reshape(shape)
    predictions = SampleScores.mean_of(np.ones(4), IDS, predictions=given).predictions
    assert predictions is not None
    assert predictions.shape == (4, 2 if len(shape) == 2 else 1)
    assert predictions[3, 0] == str(given[3] if len(shape) == 1 else given[3, 0])


@pytest.mark.parametrize(
    "change",
    [
        {"ids": IDS[:3]},
        {"clusters": (*IDS, "e")},
        {"numerator": np.ones((3, 1))},
        {"denominator": np.ones((4, 2))},
        {"numerator": np.ones(4), "denominator": np.ones(4)},
    ],
)
def test_scores_of_different_samples_do_not_go_together(change: dict[str, object]) -> None:
    fields = {"ids": IDS, "clusters": IDS, "numerator": np.ones((4, 1)), "denominator": np.ones((4, 1))}
    SampleScores(**fields)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="must describe the same samples"):
        SampleScores(**fields | change)  # type: ignore[arg-type]


def test_the_headline_is_the_main_metric() -> None:
    one, other = SampleScores.mean_of(np.ones(4), IDS), SampleScores.mean_of(np.zeros(4), IDS)
    assert Scores(metrics={"r1": one, "r5": other}, headline="r5").main is other


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_score_that_is_no_number_is_told_with_its_metric_and_its_sample(value: float) -> None:
    fine = SampleScores.mean_of(np.ones(4), IDS)
    spoilt = SampleScores.mean_of(np.array([1.0, 0.0, value, 1.0]), IDS)
    with pytest.raises(BadInputError, match=f"^kl is {value} for sample c"):
        Scores(metrics={"cosine": fine, "kl": spoilt}, headline="cosine")
    union = SampleScores(ids=IDS, clusters=IDS, numerator=np.ones((4, 2)), denominator=np.full((4, 2), value))
    with pytest.raises(BadInputError, match=r"^miou is .* for sample a"):
        Scores(metrics={"miou": union}, headline="miou")
