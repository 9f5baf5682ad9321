"""The fused kernels against their plain specifications: on the GPU where there is one, else in Triton's interpreter."""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor

from fnabench.attention.landmarks import farthest_points
from fnabench.errors import ImpossibleError
from fnabench.kernels.farthest_points import sample_farthest_points

pytest.importorskip("triton", reason="triton is not installed")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
pytestmark = [
    pytest.mark.skipif(
        DEVICE.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1", reason="no CUDA device, no interpreter"
    ),
    pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning"),  # padding is not read
]


def features(batch: int = 3, tokens: int = 40, width: int = 3, seed: int = 0) -> Tensor:
    return torch.randn(batch, tokens, width, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def some_allowed(batch: int, tokens: int, num_allowed: int) -> Tensor:
    """The same number of tokens allowed in each image, spread over it and from its first on."""
    order = torch.rand(batch, tokens, generator=torch.Generator().manual_seed(1))
    order[:, 0] = -1
    return (order.argsort(-1).argsort(-1) < num_allowed).to(DEVICE)


class TestFarthestPoints:
    """Landmarks as the plain sampling chooses them, and cells by brute force."""

    @pytest.mark.parametrize("num_prefix", [0, 1, 5])
    @pytest.mark.parametrize("num_allowed", [40, 20, 6])
    def test_the_landmarks_are_those_of_the_plain_form(self, num_prefix: int, num_allowed: int) -> None:
        x, allowed = features(), some_allowed(3, 40, num_allowed) if num_allowed < 40 else None
        sampled = sample_farthest_points(x, 12, num_prefix, allowed)
        assert torch.equal(sampled.index, farthest_points(x, 12, num_prefix, allowed).index)

    @pytest.mark.parametrize("tokens", [9, 128, 129, 300])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    def test_any_number_of_tokens_in_any_type(self, tokens: int, dtype: torch.dtype) -> None:
        x = features(2, tokens, 3).to(dtype)
        assert torch.equal(sample_farthest_points(x, 8, 1).index, farthest_points(x, 8, 1).index)

    @pytest.mark.parametrize("num_prefix", [0, 1, 5])
    def test_each_patch_belongs_to_its_nearest_patch_landmark_and_a_landmark_to_itself(self, num_prefix: int) -> None:
        x = features()
        sampled = sample_farthest_points(x, 12, num_prefix)
        landmarks = x.gather(1, sampled.index[..., None].expand(-1, -1, x.shape[-1]))
        nearest = torch.cdist(x, landmarks[:, num_prefix:]).argmin(-1) + num_prefix
        nearest.scatter_(1, sampled.index, torch.arange(12, device=DEVICE).expand(3, -1))
        assert torch.equal(sampled.cell_of, nearest)

    @pytest.mark.parametrize("num_prefix", [0, 1])
    @pytest.mark.parametrize("num_landmarks", [7, 20])
    @pytest.mark.parametrize("image", ["constant", "two points", "one huge token"])
    def test_no_token_is_chosen_twice(self, image: str, num_landmarks: int, num_prefix: int) -> None:
        x = features(2, 20)
        if image == "constant":
            x = x[:, :1].expand(-1, 20, -1)
        elif image == "two points":
            x = x[:, :2].repeat(1, 10, 1)
        else:
            x = x.index_fill(1, torch.tensor([7], device=DEVICE), 3e4)
        sampled = sample_farthest_points(x.bfloat16(), num_landmarks, num_prefix)
        assert all(len(set(row)) == num_landmarks for row in sampled.index.tolist())
        own = sampled.cell_of.gather(1, sampled.index)
        assert torch.equal(own, torch.arange(num_landmarks, device=DEVICE).expand(2, -1))

    def test_tokens_that_are_not_allowed_come_last_and_move_nothing(self) -> None:
        x, allowed = features(), some_allowed(3, 40, 9)
        sampled = sample_farthest_points(x, 12, 1, allowed)
        assert allowed.gather(1, sampled.index)[:, :9].all()
        other = x.masked_fill(~allowed[..., None], 1000.0)
        moved = sample_farthest_points(other, 12, 1, allowed)
        assert torch.equal(sampled.index[:, :9], moved.index[:, :9])

    def test_strided_features_give_the_same(self) -> None:
        x = features(2, 40, 6)
        strided = x.mT.contiguous().mT[:, ::2, 1::2]
        expected = sample_farthest_points(strided.contiguous(), 8, 1)
        assert torch.equal(sample_farthest_points(strided, 8, 1).index, expected.index)

    @pytest.mark.parametrize(("num_landmarks", "num_prefix"), [(0, 0), (5, 5), (41, 1)])
    def test_landmarks_that_do_not_fit_are_refused(self, num_landmarks: int, num_prefix: int) -> None:
        with pytest.raises(ImpossibleError, match=f"{num_landmarks} landmarks do not fit 40 tokens"):
            sample_farthest_points(features(), num_landmarks, num_prefix)

    def test_more_patches_than_the_registers_hold_are_refused(self) -> None:
        with pytest.raises(ImpossibleError, match="at most 16384 patches"):
            sample_farthest_points(torch.zeros(1, 16386, 1, device=DEVICE), 4, 1)

    def test_the_operator_is_well_formed(self) -> None:
        allowed = some_allowed(2, 20, 15)
        operator = torch.ops.fnabench.farthest_points.default
        torch.library.opcheck(operator, (features(2, 20), 4, 1, allowed))
        torch.library.opcheck(operator, (features(2, 20), 4, 1, None))

    def test_the_compiler_sees_one_graph(self) -> None:
        torch.compiler.reset()
        compiled = torch.compile(sample_farthest_points, backend="aot_eager", fullgraph=True)
        x = features()
        assert torch.equal(compiled(x, 8, 1).index, sample_farthest_points(x, 8, 1).index)
