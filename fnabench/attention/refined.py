"""The formula of refined Fast Nystrom Attention, in plain PyTorch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn.functional import pad, scaled_dot_product_attention

from fnabench.attention.cells import Cells
from fnabench.attention.inverse import effective_values, round_values, shrunken_ridge
from fnabench.attention.landmarks import Landmarks

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor

KeysOf = Cells | Landmarks
"""What the M keys stand for."""


def refined_attention(
    q: Float[Tensor, "B H N D"],
    k: Float[Tensor, "B H N D"],
    v: Float[Tensor, "B H N D"],
    landmarks: Landmarks,
    keys_of: KeysOf,
    scale: float,
    *,
    scatter: bool = True,
    inverse: str = "ridge",
    num_iterations: int = 6,
    ridge: float = 1e-3,
    shrink: bool = False,
    allowed: Bool[Tensor, "B N"] | None = None,
) -> Float[Tensor, "B H N D"]:
    """The formula of FnaRefined for query landmarks, and for keys that stand for cells or for single landmarks.

    Tokens that are not `allowed` are keys of nothing. Softmax and solve of the landmark system are fp32.
    """
    q_l = landmarks.gather(q)  # [B, H, L, D]
    u = scaled_dot_product_attention(q_l, k, v, attn_mask=_per_key(allowed), scale=scale)
    bias: Tensor | None
    if isinstance(keys_of, Cells):
        keys, prior = keys_of.mean(k).to(k.dtype), keys_of.mean(v)  # [B, H, M, D]
        bias = _per_key(keys_of.size.log().to(q.dtype))  # an empty cell has no mass
    else:
        keys, prior = keys_of.gather(k), None
        bias = _per_key(keys_of.valid)
    a = _softmax(scale * q_l.float() @ keys.float().mT, bias)  # [B, H, L, M]
    if landmarks.valid is not None:
        # The output of a masked token is no equation; where all are masked its row is NaN.
        a = a.masked_fill(~landmarks.valid[:, None, :, None], 0)
    unexplained = u.float() if prior is None else u.float() - a @ prior
    if shrink and isinstance(keys_of, Cells):
        # A landmark stands for the tokens of its cell; one without a cell for itself.
        weight = pad(keys_of.size, (0, a.shape[-2] - a.shape[-1]), value=1)[:, None].float()
        values = shrunken_ridge(a, unexplained, ridge, weight)
    else:
        values = effective_values(a, unexplained, inverse, num_iterations, ridge)
    values = round_values(values if prior is None else prior + values, v.dtype)
    output = scaled_dot_product_attention(q, keys, values, attn_mask=bias, scale=scale)
    return landmarks.scatter(output, u) if scatter else output


def _per_key(each: Tensor | None) -> Tensor | None:
    return None if each is None else each[:, None, None, :]


def _softmax(logits: Float[Tensor, "B H L M"], bias: Tensor | None) -> Float[Tensor, "B H L M"]:
    """With a bias as scaled_dot_product_attention takes it: booleans, or numbers that are added."""
    if bias is None:
        return logits.softmax(-1)
    if bias.dtype == torch.bool:
        return logits.masked_fill(~bias, -torch.inf).softmax(-1)
    return (logits + bias.float()).softmax(-1)
