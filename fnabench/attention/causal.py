"""Landmark attention under a causal mask: blocks that look at themselves exactly and at the past through cells.

Nystrom's system cannot be used here: its solution mixes landmarks of all times, so it would show a token the future.
The cells are the mass-corrected landmark softmax without that system.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import one_hot, pad, scaled_dot_product_attention

from fnabench.attention.landmarks import farthest_points

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class CausalCells:
    """Which cell of its own block each token belongs to, blocks counted from the first token."""

    block_size: int
    cells_per_block: int
    cell_of: Int[Tensor, "B blocks block"]
    """Index of the nearest landmark of the block; cells_per_block for padding."""


def block_size(num_landmarks: int) -> int:
    """Tokens of a block: twice the landmarks, so that looking at oneself costs about as much as looking at the past."""
    return 2 * num_landmarks


def cells_per_block(num_tokens: int, num_landmarks: int) -> int:
    """Landmarks of a block, such that all blocks but the last, which nobody looks back at, share num_landmarks."""
    num_past = max(1, -(-num_tokens // block_size(num_landmarks)) - 1)
    return max(1, num_landmarks // num_past)


def choose_cells(
    features: Float[Tensor, "B N F"], num_landmarks: int, allowed: Bool[Tensor, "B N"] | None = None
) -> CausalCells:
    """Farthest points of each block in the given features, and every token's nearest of its own block's."""
    B, N, F = features.shape
    size, count = block_size(num_landmarks), cells_per_block(N, num_landmarks)
    missing = -N % size
    present = torch.ones(B, N, dtype=torch.bool, device=features.device) if allowed is None else allowed
    present = pad(present, (0, missing)).reshape(-1, size)  # [B * blocks, block]
    points = pad(features.detach().float(), (0, 0, 0, missing)).reshape(-1, size, F)
    landmarks = farthest_points(points, count, 0, present)
    chosen = points.gather(1, landmarks.index[..., None].expand(-1, -1, F))
    distances = torch.cdist(points, chosen)
    assert landmarks.valid is not None
    nearest = distances.masked_fill(~landmarks.valid[:, None], torch.inf).argmin(-1)
    nearest = nearest.masked_fill(~present, count)
    return CausalCells(block_size=size, cells_per_block=count, cell_of=nearest.reshape(B, -1, size))


def causal_attention(
    q: Float[Tensor, "B H N D"],
    k: Float[Tensor, "B H N D"],
    v: Float[Tensor, "B H N D"],
    cells: CausalCells,
    scale: float,
    allowed: Bool[Tensor, "B N"] | None = None,
) -> Float[Tensor, "B H N D"]:
    """Each token attends to the tokens of its block up to itself, and to the cells of all earlier blocks.

    A cell stands for its n tokens by their mean key and mean value and counts n times: logits s q kbar + log n. No
    token sees a later one nor padding, bit for bit; a sequence of one block gets exact attention. A padding token sees
    only itself.
    """
    B, H, N, D = q.shape
    size, num_blocks = cells.block_size, cells.cell_of.shape[1]
    queries, keys, values = (
        pad(each, (0, 0, 0, num_blocks * size - N)).reshape(B, H, num_blocks, size, D) for each in (q, k, v)
    )
    member = one_hot(cells.cell_of, cells.cells_per_block + 1)[..., :-1].to(torch.float32)  # [B, blocks, block, cells]
    sizes = member.sum(2)  # [B, blocks, cells]
    average = (member / sizes.clamp_min(1)[:, :, None]).mT[:, None]  # [B, 1, blocks, cells, block]
    mean_keys, mean_values = ((average @ each.float()).to(v.dtype).flatten(2, 3) for each in (keys, values))

    index = torch.arange(num_blocks, device=q.device)
    past = (index[:, None] > index).repeat_interleave(cells.cells_per_block, 1)  # [blocks, blocks * cells]
    counts = sizes.flatten(1).log()[:, None].masked_fill(~past, -torch.inf)  # [B, blocks, blocks * cells]
    own = torch.ones(size, size, dtype=torch.bool, device=q.device).tril().expand(B, num_blocks, -1, -1)
    if allowed is not None:
        present = pad(allowed, (0, num_blocks * size - N)).reshape(B, num_blocks, 1, size)
        own = (own & present) | torch.eye(size, dtype=torch.bool, device=q.device)
    bias = torch.cat([
        counts[:, :, None].expand(-1, -1, size, -1),
        torch.zeros(own.shape, device=q.device).masked_fill(~own, -torch.inf),
    ], -1)  # fmt: skip
    if allowed is not None:  # a padding token sees only itself
        bias[..., : counts.shape[-1]].masked_fill_(~present.mT, -torch.inf)

    def seen(means: Float[Tensor, "B H M D"], tokens: Float[Tensor, "B H blocks block D"]) -> Tensor:
        return torch.cat([means[:, :, None].expand(-1, -1, num_blocks, -1, -1), tokens], 3).flatten(1, 2)

    output = scaled_dot_product_attention(
        queries.flatten(1, 2),
        seen(mean_keys, keys),
        seen(mean_values, values),
        attn_mask=bias.to(q.dtype)[:, None].expand(-1, H, -1, -1, -1).flatten(1, 2),
        scale=scale,
    )
    return output.reshape(B, H, num_blocks * size, D)[:, :, :N]


def macs_of_causal(num_tokens: int, num_landmarks: int, num_heads: int, head_dim: int) -> int:
    """Multiply-accumulates of `causal_attention` for one image: the cell means, then both products."""
    size, cells = block_size(num_landmarks), cells_per_block(num_tokens, num_landmarks)
    num_blocks = -(-num_tokens // size)
    padded = num_blocks * size
    return num_heads * head_dim * 2 * padded * (cells + num_blocks * cells + size)
