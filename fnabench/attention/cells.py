"""A partition of the tokens into cells, one around each landmark, and means over them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import embedding_bag

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor

    from fnabench.attention.landmarks import Landmarks


@dataclass(frozen=True, kw_only=True)
class Cells:
    """M cells per image; a token that is not allowed lies in none."""

    order: Int[Tensor, " B*N"]
    """The tokens of the whole batch, counted through it, cell by cell; those that lie in no cell come last."""
    start: Int[Tensor, " B*M+1"]
    """Where each cell begins in `order`, and where the last one ends."""
    size: Int[Tensor, "B M"]

    def mean(self, tokens: Float[Tensor, "B H N D"]) -> Float[Tensor, "B H M D"]:
        """The mean of each cell in fp32, zero where it is empty."""
        B, H, N, D = tokens.shape
        rows = tokens.transpose(1, 2).reshape(B * N, H * D)
        order, step = self.order, rows.stride(0) // (H * D)
        if rows.dtype != torch.float32:
            rows = rows.float()
        elif step > 1 and rows.stride() == (step * H * D, 1):  # as timm's fused qkv: rows in between are stepped over
            rows = rows.as_strided((step * (B * N - 1) + 1, H * D), (H * D, 1))
            order = step * order
        means = embedding_bag(order, rows, self.start, mode="mean")[:-1]  # the last bag lies in no cell
        return means.view(B, -1, H, D).transpose(1, 2)


def gather_cells(nearest: Int[Tensor, "B N"], num_cells: int, allowed: Bool[Tensor, "B N"] | None = None) -> Cells:
    """The cells of tokens of which each names its cell; those that are not `allowed` are left out."""
    B = nearest.shape[0]
    number = nearest + num_cells * torch.arange(B, device=nearest.device)[:, None]
    if allowed is not None:
        number = number.masked_fill(~allowed, B * num_cells)
    ascending, order = number.flatten().sort(stable=True)
    start = torch.searchsorted(ascending, torch.arange(B * num_cells + 1, device=nearest.device))
    return Cells(order=order, start=start, size=start.diff().view(B, num_cells))


def nearest_landmark(features: Float[Tensor, "B N F"], landmarks: Landmarks, num_alone: int) -> Int[Tensor, "B N"]:
    """Which landmark is nearest to each token in Euclidean distance, fp32; a landmark is nearest to itself.

    The first `num_alone` landmarks, such as prefix tokens, have no other token. Neither have invalid ones. N M F MACs.
    """
    x = features.detach().float()
    centres = x.gather(1, landmarks.index[..., None].expand(-1, -1, x.shape[-1]))
    mean = centres.mean(1, keepdim=True)
    centres = centres - mean  # what all have in common cancels before it can round
    offset = (centres * (0.5 * centres + mean)).sum(-1)[:, None]
    closeness = torch.baddbmm(offset, x, centres.mT, beta=-1)  # less is farther
    if landmarks.valid is not None:
        closeness.masked_fill_(~landmarks.valid[:, None], -torch.inf)
    closeness[:, :, :num_alone] = -torch.inf
    own = torch.arange(landmarks.index.shape[1], device=x.device).expand_as(landmarks.index)
    return closeness.argmax(-1).scatter(1, landmarks.index, own)
