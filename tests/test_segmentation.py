"""mIoU on hand-made masks with known answers, and the linear head behind it."""

from __future__ import annotations

import numpy as np
import torch
from fnabench.tasks.segmentation import overlap, shares
from torchmetrics.functional.segmentation import mean_iou

from fnabench.data.base import IGNORE_INDEX
from fnabench.linear_head import fit_linear_head
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


def test_the_linear_head_separates_what_can_be_separated():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(300) % 3
    features = 100 + 5 * torch.nn.functional.one_hot(labels, 3) + torch.randn(300, 3, generator=generator)
    head = fit_linear_head(features, torch.nn.functional.one_hot(labels, 3).float(), range(300))
    logits = features @ head["weight"].T + head["bias"]
    assert (logits.argmax(-1) == labels).float().mean() > 0.98


def test_the_linear_head_is_the_logistic_regression_of_a_library_at_the_same_penalty():
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(200, 4, generator=generator)
    labels = (features[:, 0] + torch.randn(200, generator=generator) > 0).long()
    head = fit_linear_head(features, torch.nn.functional.one_hot(labels, 2).float(), range(200))
    standard = (features - features.mean(0)) / features.std(0)
    weight = (head["weight"] * features.std(0)).requires_grad_()
    bias = (head["bias"] + head["weight"] @ features.mean(0)).requires_grad_()
    loss = torch.nn.functional.cross_entropy(standard @ weight.T + bias, labels)
    (loss + head["penalty"] * weight.square().sum()).backward()
    assert weight.grad.abs().max() < 1e-3  # the penalised loss is flat there
    assert bias.grad.abs().max() < 1e-3


def test_rows_of_zeros_do_not_count_for_the_linear_head():
    features = torch.randn(100, 3, generator=torch.Generator().manual_seed(2))
    targets = torch.nn.functional.one_hot((features[:, 0] > 0).long(), 2).float()
    groups = range(100)
    padded = torch.cat([features, 0 * features]), torch.cat([targets, 0 * targets]), [*groups, *groups]
    head, other = fit_linear_head(features, targets, groups), fit_linear_head(*padded)
    assert torch.equal((features @ head["weight"].T + head["bias"]).argmax(-1), targets.argmax(-1))
    assert torch.equal((features @ other["weight"].T + other["bias"]).argmax(-1), targets.argmax(-1))
