"""mIoU on hand-made masks with known answers."""

from __future__ import annotations

import numpy as np
import torch
from fnabench.tasks.segmentation import overlap, shares
from torchmetrics.functional.segmentation import mean_iou

from fnabench.data.base import IGNORE_INDEX
from fnabench.scores import SampleScores


def miou(pairs, num_classes):
    counts = [overlap(np.array(predicted), np.array(mask, dtype=np.uint8), num_classes) for predicted, mask in pairs]
    names = tuple(str(number) for number in range(len(pairs)))
    numerator, denominator = (np.array([count[side] for count in counts], dtype=float) for side in (0, 1))
    return SampleScores(ids=names, clusters=names, numerator=numerator, denominator=denominator).value


def test_a_perfect_map_has_miou_1():
    assert miou([([[0, 1]], [[0, 1]])], 3) == 1.0


def test_known_answer():
    # class 0: 1 of 2 pixels, class 1: 1 of 2 pixels
    assert miou([([[0, 1, 1]], [[0, 0, 1]])], 2) == 0.5


def test_intersection_and_union_are_added_over_the_data_set():
    # class 0: (1 + 0) / (1 + 3); the mean of the images' own values would be 0.5
    pairs = [([[0]], [[0]]), ([[1, 1, 1]], [[0, 0, 0]])]
    assert miou(pairs, 1 + 1) == (1 / 4 + 0 / 3) / 2


def test_ignored_pixels_do_not_count():
    assert miou([([[0, 1, 1]], [[0, IGNORE_INDEX, 1]])], 2) == 1.0


def test_classes_that_do_not_occur_are_left_out_of_the_mean():
    assert miou([([[0, 0]], [[0, 0]])], 50) == 1.0


def test_agrees_with_an_independent_implementation():
    generator = np.random.default_rng(0)
    predicted, mask = (generator.integers(4, size=(2, 6, 8)) for _ in range(2))
    ours = miou([(p, m) for p, m in zip(predicted, mask, strict=True)], 4)
    # the reference averages over images, so it is given both side by side as one
    joined = [torch.from_numpy(np.concatenate(list(maps), axis=1))[None] for maps in (predicted, mask)]
    theirs = mean_iou(*joined, num_classes=4, input_format="index")
    assert abs(ours - float(theirs)) < 1e-6


def test_the_shares_of_a_patch_are_those_of_its_pixels():
    mask = np.array([[0, 0, 1, 1], [0, 2, 1, IGNORE_INDEX]], dtype=np.uint8)
    expected = torch.tensor([[0.75, 0.0, 0.25], [0.0, 0.75, 0.0]])
    torch.testing.assert_close(shares(mask, (1, 2), 3), expected)
