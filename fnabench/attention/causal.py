"""Landmark attention under a causal mask: blocks that look at themselves exactly and at the past through cells.

Nystrom's system cannot be used here: its solution mixes landmarks of all times, so it would show a token the future.
The cells are the mass-corrected landmark softmax without that system.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn.functional import pad, scaled_dot_product_attention

from fnabench.attention.base import AttentionInputs, AttentionShape
from fnabench.attention.cells import Cells, gather_cells, nearest_landmark
from fnabench.attention.landmarks import farthest_points, features_of, num_features

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor


def block_size(num_landmarks: int) -> int:
    """Tokens of a block: twice the landmarks, so that looking at oneself costs about as much as looking at the past."""
    return 2 * num_landmarks


def cells_per_block(num_tokens: int, num_landmarks: int) -> int:
    """Landmarks of a block, such that all blocks but the last, which nobody looks back at, share num_landmarks."""
    num_past = max(1, -(-num_tokens // block_size(num_landmarks)) - 1)
    return max(1, num_landmarks // num_past)


def attend_causally(
    inputs: AttentionInputs, num_landmarks: int, features: str, resample: str
) -> Float[Tensor, "B H N D"]:
    """`causal_attention` with the cells of this forward: chosen now, or by an earlier layer."""
    allowed = inputs.key_mask()
    cells = inputs.memo.get("causal cells")
    if cells is None or resample == "layer":
        cells = choose_cells(features_of(inputs, features), num_landmarks, allowed)
        inputs.memo["causal cells"] = cells
    return causal_attention(inputs.q, inputs.k, inputs.v, cells, num_landmarks, inputs.scale, allowed)


def choose_cells(
    features: Float[Tensor, "B N F"], num_landmarks: int, allowed: Bool[Tensor, "B N"] | None = None
) -> Cells:
    """The cells of every block, blocks counted through the batch: tokens around farthest points of their own block."""
    B, N, F = features.shape
    size = block_size(num_landmarks)
    missing = -N % size
    present = torch.ones(B, N, dtype=torch.bool, device=features.device) if allowed is None else allowed
    present = pad(present, (0, missing)).reshape(-1, size)  # [B * blocks, block]
    points = pad(features, (0, 0, 0, missing)).reshape(-1, size, F)
    landmarks = farthest_points(points, cells_per_block(N, num_landmarks), 0, present)
    return gather_cells(nearest_landmark(points, landmarks, 0, present), landmarks.index.shape[1], present)


def causal_attention(
    q: Float[Tensor, "B H N D"],
    k: Float[Tensor, "B H N D"],
    v: Float[Tensor, "B H N D"],
    cells: Cells,
    num_landmarks: int,
    scale: float,
    allowed: Bool[Tensor, "B N"] | None = None,
) -> Float[Tensor, "B H N D"]:
    """Each token attends to the tokens of its block up to itself, and to the cells of all earlier blocks.

    A cell stands for its n tokens by their mean key and mean value and counts n times: logits s q kbar + log n. No
    token sees a later one nor padding, bit for bit; a sequence of one block gets exact attention. A padding token sees
    only itself.
    """
    B, H, N, D = q.shape
    size = block_size(num_landmarks)
    missing = -N % size
    num_blocks = (N + missing) // size
    queries, keys, values = (
        pad(each, (0, 0, 0, missing)).reshape(B, H, num_blocks, size, D).transpose(1, 2) for each in (q, k, v)
    )  # [B, blocks, H, block, D]

    index = torch.arange(num_blocks, device=q.device)
    is_past = (index[:, None] > index).repeat_interleave(cells.size.shape[1], 1)  # [blocks, all cells]
    past = cells.size.reshape(B, 1, 1, -1).log().masked_fill(~is_past[:, None], -torch.inf)
    own = torch.ones(size, size, dtype=torch.bool, device=q.device).tril()
    if allowed is not None:  # a padding token sees only itself
        present = pad(allowed, (0, missing)).reshape(B, num_blocks, size)
        past = past.masked_fill(~present[..., None], -torch.inf)
        own = (own & present[:, :, None]) | torch.eye(size, dtype=torch.bool, device=q.device)
    own = torch.zeros(own.shape, device=q.device).masked_fill(~own, -torch.inf)
    bias = torch.cat([past.expand(-1, -1, size, -1), own.expand(B, num_blocks, -1, -1)], -1)

    def seen(tokens: Float[Tensor, "B blocks H block D"]) -> Float[Tensor, "B*blocks H seen D"]:
        means = cells.mean(tokens.flatten(0, 1)).to(v.dtype)  # [B * blocks, H, cells, D]
        means = means.reshape(B, num_blocks, *means.shape[1:]).transpose(1, 2).flatten(2, 3)  # [B, H, all cells, D]
        return torch.cat([means[:, None].expand(-1, num_blocks, -1, -1, -1), tokens], 3).flatten(0, 1)

    output = scaled_dot_product_attention(
        queries.flatten(0, 1),
        seen(keys),
        seen(values),
        attn_mask=bias.to(q.dtype).flatten(0, 1)[:, None],
        scale=scale,
    )
    together: Tensor = output.reshape(queries.shape).transpose(1, 2).flatten(2, 3)
    return together[:, :, :N]


def macs_of_causal(shape: AttentionShape, num_landmarks: int, features: str, resample: str, num_layers: int) -> int:
    """Multiply-accumulates of `attend_causally` in these layers for one image, the selection included."""
    size, cells = block_size(num_landmarks), cells_per_block(shape.num_tokens, num_landmarks)
    num_blocks = -(-shape.num_tokens // size)
    products = 2 * num_blocks * size * (num_blocks * cells + size) * shape.num_heads * shape.head_dim
    selection = 2 * num_blocks * size * cells * num_features(shape, features)  # farthest points, nearest of them
    return num_layers * products + (1 if resample == "forward" else num_layers) * selection
