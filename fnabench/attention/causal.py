"""Landmark attention under a causal mask: blocks that look at themselves exactly and at the past through cells.

Nystrom's system cannot be used here: its solution mixes landmarks of all times, so it would show a token the future.
The cells are the mass-corrected landmark softmax without that system.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import pad, scaled_dot_product_attention

from fnabench.attention.base import AttentionInputs, AttentionShape
from fnabench.attention.cells import Cells, gather_cells, nearest_landmark
from fnabench.attention.selection import Selection

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor


def block_size(num_landmarks: int) -> int:
    """Tokens of a block: twice the landmarks, so that looking at oneself costs about as much as looking at the past."""
    return 2 * num_landmarks


def cells_per_block(num_tokens: int, num_landmarks: int) -> int:
    """Landmarks of a block, such that all blocks but the last, which nobody looks back at, share num_landmarks."""
    num_past = max(1, -(-num_tokens // block_size(num_landmarks)) - 1)
    return max(1, num_landmarks // num_past)


def attend_causally(inputs: AttentionInputs, selection: Selection) -> Float[Tensor, "B H N D"]:
    """`causal_attention` under this layer's mask, with landmarks that are chosen now or were by an earlier layer."""
    nearest = inputs.memo.get("causal nearest")
    if nearest is None or selection.resample == "layer":
        nearest = inputs.memo["causal nearest"] = choose_nearest(inputs, selection)
    num_cells = cells_per_block(inputs.q.shape[2], selection.num_landmarks)
    cells = gather_cells(nearest, num_cells, _present(inputs, block_size(selection.num_landmarks)))
    return causal_attention(
        inputs.q, inputs.k, inputs.v, cells, selection.num_landmarks, inputs.scale, inputs.key_mask()
    )


def choose_nearest(inputs: AttentionInputs, selection: Selection) -> Int[Tensor, "B*blocks block"]:
    """The nearest of the landmarks of its own block, for each token; blocks are counted through the batch."""
    num_tokens, size = inputs.q.shape[2], block_size(selection.num_landmarks)
    q, k, v = (_blocks(each, size).flatten(0, 1) for each in (inputs.q, inputs.k, inputs.v))
    x = pad(inputs.x, (0, 0, 0, -num_tokens % size)).reshape(-1, size, inputs.x.shape[-1])
    blocks = replace(inputs, q=q, k=k, v=v, x=x, num_prefix=0, mask=None, is_causal=False)
    local = _of_block(selection, num_tokens)
    features = local.points(blocks)
    landmarks = local.choose(blocks, features, _present(inputs, size))
    return nearest_landmark(features, landmarks, local.num_sinks)


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
    itself and what its own block has before it.
    """
    B, _, N, _ = q.shape
    size = block_size(num_landmarks)
    queries, keys, values = (_blocks(each, size) for each in (q, k, v))  # [B, blocks, H, block, D]
    num_blocks = queries.shape[1]

    index = torch.arange(num_blocks, device=q.device)
    is_past = (index[:, None] > index).repeat_interleave(cells.size.shape[1], 1)  # [blocks, all cells]
    past = cells.size.reshape(B, 1, 1, -1).log().masked_fill(~is_past[:, None], -torch.inf)
    own = torch.ones(size, size, dtype=torch.bool, device=q.device).tril()
    if allowed is not None:  # so that a padding token has something to see, itself
        present = pad(allowed, (0, -N % size)).reshape(B, num_blocks, size)
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


def macs_of_causal(shape: AttentionShape, selection: Selection, num_layers: int) -> int:
    """Multiply-accumulates of `attend_causally` in these layers for one image, the selection included."""
    size, local = block_size(selection.num_landmarks), _of_block(selection, shape.num_tokens)
    cells = local.num_landmarks
    num_blocks = -(-shape.num_tokens // size)
    products = 2 * num_blocks * size * (num_blocks * cells + size) * shape.num_heads * shape.head_dim
    block = replace(shape, num_tokens=size)
    nearest = size * cells * local.num_features(shape)
    choice = num_blocks * (local.macs(block) + nearest)
    return num_layers * products + (1 if selection.resample == "forward" else num_layers) * choice


def _of_block(selection: Selection, num_tokens: int) -> Selection:
    """What is chosen in each block of so many tokens."""
    count = cells_per_block(num_tokens, selection.num_landmarks)
    return replace(selection, num_landmarks=count, num_sinks=min(count - 1, selection.num_sinks))


def _present(inputs: AttentionInputs, size: int) -> Bool[Tensor, "B*blocks block"]:
    """The tokens that are no padding, neither the prompt's nor that of the last block."""
    B, _, N, _ = inputs.q.shape
    allowed = inputs.key_mask()
    allowed = torch.ones(B, N, dtype=torch.bool, device=inputs.q.device) if allowed is None else allowed
    return pad(allowed, (0, -N % size)).reshape(-1, size)


def _blocks(tokens: Float[Tensor, "B H N D"], size: int) -> Float[Tensor, "B blocks H size D"]:
    B, H, N, D = tokens.shape
    return pad(tokens, (0, 0, 0, -N % size)).reshape(B, H, -1, size, D).transpose(1, 2)
