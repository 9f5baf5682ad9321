"""Cells: every allowed token lies in exactly one, and the means are means."""

from __future__ import annotations

import pytest
import torch

from fnabench.attention.cells import gather_cells, nearest_landmark
from fnabench.attention.landmarks import farthest_points

NEAREST = torch.tensor([[0, 2, 2, 1, 2, 0, 1], [2, 2, 2, 2, 2, 0, 2]])
TOKENS = torch.randn(2, 3, 7, 4, generator=torch.Generator().manual_seed(0))
ALLOWED = torch.tensor([[1, 0, 1, 0, 1, 1, 0], [1, 1, 1, 1, 1, 1, 1]], dtype=torch.bool)


@pytest.mark.parametrize("allowed", [None, ALLOWED], ids=["all", "masked"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_means_and_sizes_are_those_of_the_tokens_in_a_cell(allowed: torch.Tensor | None, dtype: torch.dtype) -> None:
    cells = gather_cells(NEAREST, 4, allowed)
    means = cells.mean(TOKENS.to(dtype))
    assert means.dtype == torch.float32
    for image in range(2):
        for cell in range(4):
            inside = NEAREST[image] == cell
            inside = inside if allowed is None else inside & allowed[image]
            assert cells.size[image, cell] == inside.sum()
            tokens = TOKENS.to(dtype)[image, :, inside].float()
            expected = tokens.mean(1) if inside.any() else torch.zeros(3, 4)
            torch.testing.assert_close(means[image, :, cell], expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("which", [0, 1, 2])
def test_means_of_one_part_of_a_fused_projection_are_those_of_its_copy(which: int) -> None:
    fused = torch.randn(2, 7, 3, 3, 4, generator=torch.Generator().manual_seed(1))
    tokens = fused.permute(2, 0, 3, 1, 4)[which]
    cells = gather_cells(NEAREST, 3, ALLOWED)
    assert torch.equal(cells.mean(tokens), cells.mean(tokens.contiguous()))


def test_means_of_tokens_that_fp16_can_hold_do_not_overflow() -> None:
    tokens = torch.full((1, 1, 500, 2), 6e4, dtype=torch.float16)
    assert (gather_cells(torch.zeros(1, 500, dtype=torch.long), 1).mean(tokens) == tokens[0, 0, 0, 0]).all()


@pytest.mark.parametrize("num_prefix", [0, 1, 4])
def test_each_token_goes_to_its_nearest_landmark_and_prefix_tokens_stay_alone(num_prefix: int) -> None:
    x = torch.randn(2, 30, 5, generator=torch.Generator().manual_seed(1)) + 100
    landmarks = farthest_points(x, 9, num_prefix)
    nearest = nearest_landmark(x, landmarks, num_prefix)
    for image in range(2):
        own = landmarks.index[image].tolist()
        for token in range(30):
            distances = (x[image, token] - x[image, own]).double().norm(dim=-1)
            distances[:num_prefix] = torch.inf
            expected = own.index(token) if token in own else int(distances.argmin())
            assert nearest[image, token] == expected


def test_copies_of_a_landmark_do_not_take_its_own_token() -> None:
    x = torch.ones(1, 12, 3)
    landmarks = farthest_points(x, 5, 1)
    sizes = gather_cells(nearest_landmark(x, landmarks, 1), 5).size
    assert (sizes >= 1).all()
    assert sizes.sum() == 12


def test_an_invalid_landmark_has_no_other_token() -> None:
    x = torch.randn(1, 12, 3, generator=torch.Generator().manual_seed(2))
    allowed = torch.arange(12)[None] < 4
    landmarks = farthest_points(x, 6, 1, allowed)
    assert landmarks.valid is not None
    nearest = nearest_landmark(x, landmarks, 1)
    others = torch.ones(12, dtype=torch.bool).index_fill(0, landmarks.index[0], False)
    assert (nearest[0, others] < 4).all(), "neither of those that are not allowed, which a later layer may allow"
    assert gather_cells(nearest, 6, allowed).size.tolist() == [[1, 1, 1, 1, 0, 0]]
