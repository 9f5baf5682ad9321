"""Landmark selection: distinct, allowed, farthest, and the same in both forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from fnabench.attention.landmarks import farthest_points


def features(batch: int = 3, tokens: int = 40, width: int = 6, seed: int = 0) -> Tensor:
    return torch.randn(batch, tokens, width, generator=torch.Generator().manual_seed(seed))


def whole_numbers(batch: int = 3, tokens: int = 32, width: int = 3, seed: int = 0) -> Tensor:
    """Features with many equal distances and duplicates; means over a power of two of them are exact in fp32."""
    return torch.randint(-2, 3, (batch, tokens, width), generator=torch.Generator().manual_seed(seed)).float()


def assert_farthest(points: np.ndarray, chosen: list[int], num_prefix: int, allowed: np.ndarray | None = None) -> None:
    """Each landmark is farthest from the start (the prefix, else the mean) and from those chosen before it."""
    for step in range(num_prefix, len(chosen)):
        mean = points.mean(0, keepdims=True)
        start = points[chosen[:step]] if num_prefix else np.concatenate([mean, points[chosen[:step]]])
        distances = np.square(points[:, None] - start[None]).sum(-1).min(1)
        distances[chosen[:step]] = -1
        if allowed is not None:
            distances[~allowed] = -1
        assert distances[chosen[step]] == pytest.approx(distances.max(), rel=1e-4)


@pytest.mark.parametrize("num_prefix", [0, 1, 5])
def test_each_landmark_is_farthest_from_those_before_it(num_prefix: int) -> None:
    x = features()
    index = farthest_points(x, 15, num_prefix).index
    for image, chosen in zip(x, index, strict=True):
        assert_farthest(image.double().numpy(), chosen.tolist(), num_prefix)


@pytest.mark.parametrize(("num_prefix", "num_allowed"), [(0, 32), (1, 32), (0, 16), (4, 8)])
def test_the_form_for_one_image_equals_the_form_for_a_batch(num_prefix: int, num_allowed: int) -> None:
    x = whole_numbers()
    allowed = torch.arange(32).expand(3, -1) < num_allowed if num_allowed < 32 else None
    one_by_one = farthest_points(x, 12, num_prefix, allowed)
    torch.compiler.reset()
    in_batch = torch.compile(farthest_points, backend="eager", fullgraph=True)(x, 12, num_prefix, allowed)
    assert torch.equal(one_by_one.index, in_batch.index)
    if allowed is None:
        assert one_by_one.valid is in_batch.valid is None
    else:
        assert torch.equal(one_by_one.valid, in_batch.valid)


@pytest.mark.parametrize("num_prefix", [1, 2, 5])
def test_the_prefix_always_comes_first(num_prefix: int) -> None:
    x = features()
    x[:, :num_prefix] = 0  # the prefix tokens are one point in the middle: never far from anything
    index = farthest_points(x, 8, num_prefix).index
    assert torch.equal(index[:, :num_prefix], torch.arange(num_prefix).expand(3, -1))


@pytest.mark.parametrize("num_prefix", [0, 1])
@pytest.mark.parametrize("num_landmarks", [7, 40])
@pytest.mark.parametrize("image", ["constant", "zero", "two points", "one huge token", "random"])
def test_no_token_is_chosen_twice(image: str, num_landmarks: int, num_prefix: int) -> None:
    x = features()
    if image in ("constant", "zero"):
        x = x[:, :1].expand(-1, 40, -1) * (image == "constant")
    elif image == "two points":
        x = x[:, :2].repeat(1, 20, 1)
    elif image == "one huge token":
        x = x.index_fill(1, torch.tensor([7]), 3e4)
    for dtype in (torch.float32, torch.bfloat16):
        index = farthest_points(x.to(dtype), num_landmarks, num_prefix).index
        assert all(len(set(row)) == num_landmarks for row in index.tolist())


def test_a_token_far_from_all_others_is_a_landmark() -> None:
    x = features()
    x[:, 23] += 100
    assert (farthest_points(x, 2, 1).index[:, 1] == 23).all()


def test_tokens_that_are_not_allowed_are_never_landmarks() -> None:
    x = features()
    x[:, 10:20] *= 50  # the first to be chosen if they could be
    allowed = torch.ones(3, 40, dtype=torch.bool)
    allowed[:, 10:20] = False
    landmarks = farthest_points(x, 12, 1, allowed)
    assert landmarks.valid is not None
    assert landmarks.valid.all()
    for image, chosen in zip(x, landmarks.index.tolist(), strict=True):
        assert not set(chosen) & set(range(10, 20))
        assert_farthest(image.double().numpy(), chosen, 1, allowed[0].numpy())


def test_a_copy_that_is_allowed_comes_before_any_token_that_is_not() -> None:
    constant = torch.ones(2, 40, 6)
    allowed = torch.arange(40).expand(2, -1) >= 25
    landmarks = farthest_points(constant, 12, 0, allowed)
    assert landmarks.valid is not None
    assert landmarks.valid.all()
    assert (landmarks.index >= 25).all()


@pytest.mark.parametrize("num_prefix", [0, 1])
def test_tokens_that_are_not_allowed_do_not_move_the_others(num_prefix: int) -> None:
    x, allowed = features(), torch.arange(40).expand(3, -1) < 30
    other = x.clone()
    other[:, 30:] = 1000.0
    assert torch.equal(
        farthest_points(x, 10, num_prefix, allowed).index, farthest_points(other, 10, num_prefix, allowed).index
    )


@pytest.mark.parametrize("num_prefix", [0, 1])
def test_a_row_that_runs_out_of_allowed_tokens_marks_the_rest_invalid(num_prefix: int) -> None:
    allowed = torch.ones(2, 40, dtype=torch.bool)
    allowed[1, 4:] = False
    landmarks = farthest_points(features(2), 9, num_prefix, allowed)
    assert landmarks.valid is not None
    assert landmarks.valid[0].all()
    assert landmarks.valid[1].tolist() == [True] * 4 + [False] * 5
    assert set(landmarks.index[1, :4].tolist()) == {0, 1, 2, 3}
    assert all(len(set(row)) == 9 for row in landmarks.index.tolist())


def test_a_prefix_token_that_is_not_allowed_is_no_valid_landmark() -> None:
    allowed = torch.ones(3, 40, dtype=torch.bool)
    allowed[:, 1] = False
    landmarks = farthest_points(features(), 9, 2, allowed)
    assert landmarks.valid is not None
    assert landmarks.valid[0].tolist() == [True, False] + [True] * 7


def test_the_selection_of_an_image_does_not_depend_on_its_batch() -> None:
    x = features()
    x[1] *= 1e4
    together = farthest_points(x, 12, 1).index
    for position in range(3):
        assert torch.equal(together[position], farthest_points(x[position : position + 1], 12, 1).index[0])


def test_gather_takes_the_same_tokens_of_every_head() -> None:
    tokens = torch.arange(2 * 3 * 7, dtype=torch.float32).reshape(2, 3, 7, 1)
    landmarks = farthest_points(features(2, 7), 4, 1)
    for image in range(2):
        for head in range(3):
            assert torch.equal(landmarks.gather(tokens)[image, head], tokens[image, head, landmarks.index[image]])


def test_the_features_are_left_alone() -> None:
    x = features()
    before = x.clone()
    farthest_points(x, 10, 1, torch.ones(3, 40, dtype=torch.bool))
    assert torch.equal(x, before)
