"""Landmarks by other means than farthest points: an order of the tokens, random pivots, moves to the cell means."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from fnabench.attention.cells import gather_cells, nearest_landmark
from fnabench.attention.landmarks import Landmarks, centred, start_set

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor

GOLDEN_RATIO = (5**0.5 - 1) / 2
EXPLAINED = 1e-6
"""What is left of a kernel's diagonal of ones and is no more than rounding."""


def golden_order(num_tokens: int, device: torch.device) -> Float[Tensor, " N"]:
    """Ranks of which the lowest M are spread evenly over the tokens, whatever M is: multiples of the golden ratio."""
    return (torch.arange(num_tokens, dtype=torch.float64, device=device) * GOLDEN_RATIO % 1).float()


def random_order(num_tokens: int, device: torch.device, seed: int) -> Float[Tensor, " N"]:
    """Ranks of which the lowest M are a uniform draw."""
    return torch.rand(num_tokens, generator=torch.Generator().manual_seed(seed)).to(device)


def first_of_order(
    rank: Float[Tensor, "B N"],
    num_landmarks: int,
    num_prefix: int,
    allowed: Bool[Tensor, "B N"] | None = None,
    guaranteed: Int[Tensor, "B S"] | None = None,
) -> Landmarks:
    """The tokens of lowest rank in [0, 1), after the prefix tokens and the guaranteed ones."""
    if allowed is not None:
        rank = rank.masked_fill(~allowed, 2.0)
    start = start_set(num_prefix, guaranteed, rank[..., None])
    before = torch.arange(start.shape[1], dtype=rank.dtype, device=rank.device) - start.shape[1]
    index = rank.scatter(1, start, before.expand(start.shape)).argsort(dim=1, stable=True)[:, :num_landmarks]
    return Landmarks(index=index).under(allowed)


def random_pivots(
    features: Float[Tensor, "B N F"],
    num_landmarks: int,
    num_prefix: int,
    seed: int,
    allowed: Bool[Tensor, "B N"] | None = None,
    guaranteed: Int[Tensor, "B S"] | None = None,
) -> Landmarks:
    """Randomly pivoted Cholesky of exp(-|x - y|^2 / 2 w^2), w^2 the mean squared distance to the mean: each landmark is
    drawn in proportion to what the earlier ones leave unexplained of the kernel's diagonal.

    N M F + N M^2 / 2 MACs an image, no device sync.
    """
    x = centred(features, allowed)
    B, N, _ = x.shape
    usable = torch.ones_like(x[..., 0], dtype=torch.bool) if allowed is None else allowed
    norms = x.square().sum(-1)
    width = ((norms * usable).sum(1) / usable.sum(1).clamp_min(1)).clamp_min(torch.finfo(x.dtype).tiny)[:, None]
    draws = 0.999999 * torch.rand(num_landmarks, generator=torch.Generator().manual_seed(seed)).to(x.device)
    start = start_set(num_prefix, guaranteed, x)
    factor = x.new_zeros(B, N, num_landmarks)
    left = torch.ones_like(norms)  # of the diagonal
    index = start.new_zeros(B, num_landmarks)
    for m in range(num_landmarks):
        if m < start.shape[1]:
            newest = start[:, m : m + 1]
        else:  # the floors let duplicates be drawn where nothing is left, and masked tokens where all others are taken
            chance = torch.where(usable, left.clamp_min(EXPLAINED), 1e-30).scatter(1, index[:, :m], 0.0).cumsum(1)
            newest = torch.searchsorted(chance, draws[m] * chance[:, -1:], right=True)
        index[:, m : m + 1] = newest
        point = x.gather(1, newest[..., None].expand(-1, 1, x.shape[-1]))  # [B, 1, F]
        distance = (norms + norms.gather(1, newest) - 2 * (x @ point.mT)[..., 0]).clamp_min(0)
        row = factor[:, :, :m].gather(1, newest[..., None].expand(-1, 1, m))
        column = (-distance / (2 * width)).exp() - (factor[:, :, :m] @ row.mT)[..., 0]
        own = column.gather(1, newest)
        factor[:, :, m] = torch.where(own > EXPLAINED, column * own.clamp_min(EXPLAINED).rsqrt(), 0)
        left = left - factor[:, :, m].square()
    return Landmarks(index=index).under(allowed)


def move_to_means(
    features: Float[Tensor, "B N F"],
    landmarks: Landmarks,
    num_prefix: int,
    num_guaranteed: int = 0,
    allowed: Bool[Tensor, "B N"] | None = None,
) -> Landmarks:
    """One step of k-means among tokens: each landmark becomes the token of its cell that is nearest to the cell's mean.

    Prefix tokens and the guaranteed ones after them stay. 2 N M F MACs.
    """
    x = features.detach().float()
    num_cells = landmarks.index.shape[1]
    nearest = nearest_landmark(x, landmarks, num_prefix + num_guaranteed)
    means = gather_cells(nearest, num_cells, allowed).mean(x[:, None])[:, 0]  # [B, M, F]
    closeness = x @ means.mT - 0.5 * x.square().sum(-1, keepdim=True)  # [B, N, M], up to a number for each cell
    outside = nearest[..., None] != torch.arange(num_cells, device=nearest.device)
    if allowed is not None:
        outside |= ~allowed[..., None]
    index = closeness.masked_fill_(outside, -torch.inf).argmax(1)
    kept = torch.arange(num_cells, device=index.device) < num_prefix + num_guaranteed
    kept = kept if landmarks.valid is None else kept | ~landmarks.valid
    return Landmarks(index=torch.where(kept, landmarks.index, index), valid=landmarks.valid)
