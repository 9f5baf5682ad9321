"""Four ways to classify, on hand-made embeddings with known answers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fnabench.tasks.classification import Classification
from lookup import Lookup, Numbered, loader, samples

from fnabench.errors import BadInputError

NAMES = ("left", "up", "right")


def classify(method, images, labels, fitted_on=None, **options):
    task, backbone = Classification(method=method, **options), Lookup(images)
    fitted = {}
    if fitted_on is not None:
        training = Numbered(samples(label=fitted_on[1]))
        fitted = task.fit(Lookup(fitted_on[0]), loader(training))
    return task.evaluate(backbone, loader(Numbered(samples(label=labels), NAMES)), fitted).main


def test_zero_shot_takes_the_class_whose_prompts_are_nearest():
    scores = classify("zeroshot", ["left", "right", "nearly left", "up"], [0, 2, 0, 0])
    assert scores.numerator[:, 0].tolist() == [1.0, 1.0, 1.0, 0.0]
    assert scores.predictions[:, 0].tolist() == ["0", "2", "0", "1"]


def test_auto_is_zero_shot_for_a_model_with_prompts_and_no_head():
    assert classify("auto", ["left", "up"], [0, 1]).value == 1.0


def test_auto_is_the_head_for_a_model_without_prompts():
    class WithHead(Lookup):
        templates = ()

        def classify(self, images):
            return torch.eye(3)[[2] * len(images)]

    scores = Classification().evaluate(WithHead(["left"]), loader(Numbered(samples(label=[2]))), {})
    assert scores.main.value == 1.0


def test_the_nearest_neighbours_vote_with_their_similarity():
    bank = (["left", "up", "up"], [7, 3, 3])
    assert classify("knn", ["nearly left"], [7], bank).value == 1.0  # one near neighbour outweighs two far ones
    flat = classify("knn", ["nearly left"], [3], bank, temperature=1e6)
    assert flat.value == 1.0  # with equal weights the two win


def test_k_limits_who_may_vote():
    bank = (["left", "up", "up"], [7, 3, 3])
    assert classify("knn", ["nearly left"], [7], bank, temperature=1e6, num_neighbours=1).value == 1.0


def test_of_neighbours_that_are_equally_near_the_first_may_vote():
    bank = (["left"] * 40, [2, *[1] * 39])
    assert classify("knn", ["left"], [2], bank, num_neighbours=1).value == 1.0
    assert classify("knn", ["left"], [1], bank, num_neighbours=3).value == 1.0
    first_and_last = (["left"] * 40, [2] * 2 + [1] * 38)
    assert classify("knn", ["left"], [2], first_and_last, num_neighbours=3).value == 1.0


def test_the_votes_are_those_of_a_plain_computation():
    generator = np.random.default_rng(0)
    bank = torch.nn.functional.normalize(torch.from_numpy(generator.standard_normal((40, 5))).float(), dim=-1)
    labels = torch.from_numpy(generator.integers(4, size=40))
    queries = torch.nn.functional.normalize(torch.from_numpy(generator.standard_normal((6, 5))).float(), dim=-1)
    votes = Classification(method="knn", num_neighbours=9)._votes(queries, {"features": bank, "labels": labels})
    for query, row in zip(queries, votes, strict=True):
        cosines = bank @ query
        nearest = cosines.argsort(descending=True)[:9]
        weights = torch.softmax(cosines[nearest] / 0.07, 0)
        expected = torch.stack([weights[labels[nearest] == label].sum() for label in range(4)])
        torch.testing.assert_close(row, expected, rtol=1e-4, atol=1e-6)


def test_the_linear_probe_learns_what_is_linear():
    fitted_on = (["left", "up", "right"] * 10, [0, 1, 2] * 10)
    assert classify("linear", ["left", "nearly left", "up", "right"], [0, 0, 1, 2], fitted_on).value == 1.0


def test_an_unknown_method_is_refused():
    with pytest.raises(BadInputError, match="auto, head, zeroshot, knn, linear"):
        Classification(method="guess")


@pytest.mark.parametrize("options", [{"num_neighbours": 0}, {"temperature": 0.0}])
def test_neighbours_without_a_vote_are_refused(options):
    with pytest.raises(
        BadInputError, match=r"task\.num_neighbours=\d+ must be at least 1 and task\.temperature=.* above 0"
    ):
        Classification(method="knn", **options)
